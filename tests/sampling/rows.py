"""Rows, settings, logits and comparisons for the tests of sampling."""

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
    """Return a row whose sequence has few distinct tokens, so that repeats and n-grams occur."""
    tokens = [rng.randrange(min(vocab_size, 12)) for _ in range(rng.randrange(1, 40))]
    settings.setdefault("seed", rng.randrange(2**63))
    return SamplingRow(SamplingParams(**settings), tokens, rng.randrange(1, len(tokens) + 1), EOS, rng.randrange(4))


def make_warper_settings(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Return random settings of the warpers, extreme values included. A few rows have typical-p."""
    settings: dict[str, Any] = {"temperature": rng.choice((1.0, 0.7, 0.2, 1.8, 1e-5, rng.uniform(0.05, 3)))}
    for name, values in (
        ("top_k", (1, 2, 40, 56, 57, 300, 3000, vocab_size)),
        ("top_p", (0.01, 0.5, 0.9, 0.999)),
        ("min_p", (1.0, 0.3, 0.05, 1e-35)),
    ):
        if rng.random() < 0.4:
            settings[name] = rng.choice(values)
    return settings | ({"typical_p": 0.9} if rng.random() < 0.05 else {})


def make_logits(kind: str, num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Return random logits [R, V].

    ``plain``: normal. ``peaked``: with forty likely tokens. ``flat``: nearly equal. ``tied``: rounded to whole numbers.
    ``bf16``: rounded to bfloat16. ``masked``: about half at -inf. ``few``: nearly all at -inf.
    """
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(num_rows, vocab_size, generator=generator) * 3
    if kind == "peaked":
        logits_RV[:, :40] += torch.linspace(14, 3, 40)
    elif kind == "flat":
        logits_RV *= 0.01
    elif kind == "tied":
        logits_RV = logits_RV.round()
    elif kind == "bf16":
        logits_RV = logits_RV.bfloat16().float()
    elif kind in ("masked", "few"):
        is_masked_RV = torch.rand(num_rows, vocab_size, generator=generator) < (0.5 if kind == "masked" else 0.995)
        is_masked_RV[:, 0] = False
        logits_RV.masked_fill_(is_masked_RV, -torch.inf)
    else:
        assert kind == "plain"
    return logits_RV


def assert_same(ours_RV: Tensor, expected_RV: Tensor) -> None:
    """Assert that the same tokens are masked and that the other logits are equal within 1e-6 relative."""
    assert not ours_RV.isnan().any()
    assert torch.equal(ours_RV == -torch.inf, expected_RV == -torch.inf)
    torch.testing.assert_close(ours_RV, expected_RV, rtol=1e-6, atol=1e-6)


def row_by_row(oracle: Callable[[SamplingRow], Any], logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Return the logits of each row after the transformers processor for its settings."""
    results = [oracle(row)(torch.tensor([row.token_ids]), logits_RV[i : i + 1].clone()) for i, row in enumerate(rows)]
    return torch.cat(results)
