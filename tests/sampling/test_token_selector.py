"""The PyTorch selector samples the tokens of transformers' warpers and the noise formula."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.sampling.oracles import ORACLES, gumbel_noise_formula
from tests.sampling.rows import make_logits, make_row, make_warper_settings
from torch import Tensor

from hasten.sampling import gumbel_argmax, token_selector
from hasten.sampling.chain import WARPERS, Chain, registered_name
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_selector import TorchTokenSelector, argmax_tokens

VOCAB = 4096
KINDS = ("peaked", "plain", "tied", "bf16", "flat", "masked", "few")


def expected_token(logits_V: Tensor, row: SamplingRow) -> int:
    logits_1V = logits_V[None]
    for warper in WARPERS:
        if warper.applies(row.params):
            logits_1V = ORACLES[registered_name(warper)].processor(row)(torch.tensor([row.token_ids]), logits_1V)
    candidates = (logits_1V[0] > -torch.inf).nonzero()[:, 0].tolist()
    values = logits_1V[0].tolist()
    return max(candidates, key=lambda token: values[token] + gumbel_noise_formula(row, token))


def num_wrong_tokens(num_seeds: int = 12) -> int:
    """Return how many tokens differ from the oracle's, over rows of all kinds."""
    num_wrong = 0
    for seed in range(num_seeds):
        for kind in KINDS:
            rng = random.Random(f"{seed} {kind}")
            rows = [make_row(rng, VOCAB, **make_warper_settings(rng, VOCAB)) for _ in range(20)]
            logits_RV = make_logits(kind, len(rows), VOCAB, seed)
            expected = [expected_token(logits_V, row) for logits_V, row in zip(logits_RV, rows, strict=True)]
            selected = TorchTokenSelector().select(logits_RV, rows)
            num_wrong += sum(a != b for a, b in zip(selected, expected, strict=True))
    return num_wrong


def test_tokens_are_those_of_transformers_warpers_and_the_noise_formula() -> None:
    assert num_wrong_tokens() == 0


def every_row_has_the_noise_of_the_first(patch: pytest.MonkeyPatch) -> None:
    streams = gumbel_argmax.streams
    patch.setattr(gumbel_argmax, "streams", lambda *key: streams(*key)[:1].repeat(len(key[0])))


def no_row_is_warped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "warp", lambda self, logits_RV, rows: logits_RV)


def every_row_is_greedy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(token_selector, "gumbel_argmax", lambda warped_RV, rows: argmax_tokens(warped_RV))


@pytest.mark.parametrize("plant", [every_row_has_the_noise_of_the_first, no_row_is_warped, every_row_is_greedy])
def test_a_planted_fault_is_caught(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert num_wrong_tokens(1) > 0


def test_argmax_tokens_takes_the_lowest_id_of_a_tie_and_no_row_without_a_finite_maximum() -> None:
    nan, inf = float("nan"), float("inf")
    logits_RV = torch.tensor([[1.0, 3, 3], [-inf, -5, -inf], [-inf, -inf, -inf], [1, inf, 2], [9, 1, nan], [inf, nan, 0]])
    assert argmax_tokens(logits_RV) == [1, 1, None, None, None, None]
