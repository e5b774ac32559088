"""Rows, logits and comparisons for the tests of sampling."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow

EOS = (2, 5)


def make_row(rng: random.Random, vocab_size: int, **settings: Any) -> SamplingRow:
    """A row with a history of few distinct tokens, so that repeats and n-grams occur."""
    tokens = [rng.randrange(min(vocab_size, 12)) for _ in range(rng.randrange(1, 40))]
    settings.setdefault("seed", rng.randrange(2**63))
    return SamplingRow(SamplingParams(**settings), tokens, rng.randrange(1, len(tokens) + 1), EOS, rng.randrange(4))


def make_logits(kind: str, num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    """[R, V]: ``plain`` normal logits, ``tied`` with many equal ones, ``masked`` with about half at -inf."""
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(num_rows, vocab_size, generator=generator) * 3
    if kind == "tied":
        return logits_RV.mul(1.0).round()
    if kind == "masked":
        masked_RV = torch.rand(num_rows, vocab_size, generator=generator) < 0.5
        masked_RV[:, 0] = False
        return logits_RV.masked_fill(masked_RV, -torch.inf)
    return logits_RV


def assert_same(ours_RV: Tensor, expected_RV: Tensor) -> None:
    """The same tokens removed, the others equal within 1e-6 relative."""
    assert not ours_RV.isnan().any()
    assert torch.equal(ours_RV == -torch.inf, expected_RV == -torch.inf)
    torch.testing.assert_close(ours_RV, expected_RV, rtol=1e-6, atol=1e-6)


def row_by_row(oracle: Callable[[SamplingRow], Any], logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Each row through the transformers processor that was made for its settings."""
    results = [oracle(row)(torch.tensor([row.token_ids]), logits_RV[i : i + 1].clone()) for i, row in enumerate(rows)]
    return torch.cat(results)
