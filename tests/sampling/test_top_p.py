"""The fast path of top-p keeps the tokens of the full sort, also where rounding matters most."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests.sampling.rows import make_row
from torch import Tensor
from transformers.generation.logits_process import TopPLogitsWarper

from hasten.sampling.processors import top_p
from hasten.sampling.processors.top_p import TopP

VOCAB = 6000


def distributions() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    rank_V = torch.arange(1, VOCAB + 1, dtype=torch.float32)
    shuffled_V = torch.randperm(VOCAB, generator=generator)
    normal_V = torch.randn(VOCAB, generator=generator)
    few_V = torch.full((VOCAB,), -torch.inf)
    few_V[:50] = normal_V[:50]
    return {
        "peaked": normal_V * 4,
        "zipf": -1.2 * rank_V.log()[shuffled_V],
        "heavy tail": -0.8 * rank_V.log()[shuffled_V],
        "geometric": -0.01 * rank_V[shuffled_V],
        "flat": torch.zeros(VOCAB),
        "nearly flat": normal_V * 1e-4,
        "tied in groups": (normal_V * 3).round(),
        "two levels": torch.where(rank_V <= 64, 8.0, 0.0)[shuffled_V],
        "one token": torch.where(rank_V == 17, 60.0, 0.0),
        "few unmasked": few_V,
        "large": normal_V * 300 + 1e4,
    }


def thresholds(logits_V: Tensor) -> list[float]:
    """Return ordinary values of top_p, and values whose 1 - top_p is a sum of the sort or next to one."""
    sums_V = logits_V.sort().values.softmax(dim=0).cumsum(dim=0)
    exact = [float(sums_V[-i]) for i in (1, 2, 3, 5, 17, 60, 64, 65, 200, 255, 256, 257, 900, 4096)]
    adjacent = [float(torch.nextafter(torch.tensor(s), torch.tensor(to))) for s in exact for to in (0.0, 2.0)]
    return [0.1, 0.5, 0.9, 0.95, 0.99, 1 - 1e-7] + [1 - s for s in exact + adjacent if 0 < s < 1]


def drifting_logits(spread: float) -> tuple[Tensor, list[float]]:
    """Return a long tail over which a float32 sum drifts, and values of top_p that cut just above it."""
    generator = torch.Generator().manual_seed(0)
    rank_V = torch.arange(150_000, dtype=torch.float32)
    tail_V = spread * torch.rand(150_000, generator=generator)
    logits_V = torch.where(rank_V < 64, 3 - 0.01 * rank_V, tail_V)[torch.randperm(150_000, generator=generator)]
    sums_V = logits_V.sort().values.softmax(dim=0).cumsum(dim=0)
    return logits_V, [1 - float(sums_V[-i]) for i in range(2, 60, 12)]


def num_differing(processor: TopP, logits_V: Tensor, values: list[float]) -> int:
    """Return how many values of top_p keep other tokens than transformers; all share one batch."""
    rows = [make_row(random.Random(0), len(logits_V), top_p=p) for p in values]
    ours_RV = processor(logits_V.repeat(len(values), 1), rows)
    hf_RV = torch.cat([TopPLogitsWarper(p)(torch.tensor([[0]]), logits_V[None]) for p in values])
    return int((ours_RV != hf_RV).any(dim=1).sum())


@pytest.mark.parametrize("candidates", [(256, 4096), (16,), (3, 1000)])
@pytest.mark.parametrize("name", distributions())
def test_the_kept_set_is_that_of_the_sort(name: str, candidates: tuple[int, ...]) -> None:
    logits_V = distributions()[name]
    assert num_differing(TopP(candidates), logits_V, thresholds(logits_V)) == 0


@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_the_kept_set_is_that_of_the_sort_where_float32_sums_drift(spread: float) -> None:
    assert num_differing(TopP(), *drifting_logits(spread)) == 0


def test_without_its_error_bound_the_fast_path_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_p, "HALF_ULP", 0.0)
    monkeypatch.setattr(top_p, "DOUBLE_ERROR", 0.0)
    assert sum(num_differing(TopP(), logits_V, thresholds(logits_V)) for logits_V in distributions().values()) > 0


@pytest.mark.parametrize("name", ["peaked", "zipf", "few unmasked", "one token"])
def test_ordinary_rows_are_not_sorted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise AssertionError("the vocabulary was sorted")

    monkeypatch.setattr(top_p, "top_p_by_sorting", fail)
    assert num_differing(TopP(), distributions()[name], [0.5, 0.8, 0.9]) == 0


@given(
    arrays("float32", (3, 40), elements=st.floats(-20, 20, width=16) | st.sampled_from([0.0, 1.0, -float("inf")])),
    st.lists(st.floats(1e-6, 1, exclude_max=True), min_size=3, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_any_row_equals_transformers(logits, values) -> None:
    logits_RV = torch.from_numpy(logits.copy())
    logits_RV[:, 0] = 0.0
    rows = [make_row(random.Random(0), 40, top_p=p) for p in values]
    ours_RV = TopP((4, 16))(logits_RV.clone(), rows)
    hf_RV = torch.cat([TopPLogitsWarper(p)(torch.tensor([[0]]), logits_RV[i : i + 1]) for i, p in enumerate(values)])
    assert torch.equal(ours_RV, hf_RV)
