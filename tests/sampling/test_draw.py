"""Short lists draw the token that the whole vocabulary draws, whatever the settings, and know when they cannot tell."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.sampling.rows import make_row
from tests.sampling.test_top_p import distributions, thresholds
from torch import Tensor

from hasten.sampling import draw as module
from hasten.sampling import noise, noise_search
from hasten.sampling.chain import Chain
from hasten.sampling.draw import draw
from hasten.sampling.gumbel_argmax import gumbel_argmax
from hasten.sampling.processors import top_p
from hasten.sampling.processors.top_k import TopK
from hasten.sampling.processors.top_p import TopP, by_sorting
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist
from hasten.sampling.topk import LOWEST, likeliest

VOCAB = 4096
KINDS = ("peaked", "plain", "bf16", "flat", "masked", "few")


def logits(kind: str, num_rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values_RV = torch.randn(num_rows, VOCAB, generator=generator) * (0.05 if kind == "flat" else 2.5)
    if kind == "peaked":
        values_RV[:, :40] += torch.linspace(14, 3, 40)
    elif kind == "bf16":
        return values_RV.bfloat16().float()
    elif kind in ("masked", "few"):
        share = 0.7 if kind == "masked" else 0.995
        return values_RV.masked_fill(torch.rand(num_rows, VOCAB, generator=generator) < share, -torch.inf)
    return values_RV


def settings(rng: random.Random) -> dict[str, Any]:
    chosen: dict[str, Any] = {"temperature": rng.choice((1.0, 0.7, 0.2, 1.8, 1e-5, rng.uniform(0.05, 3)))}
    for name, values in (
        ("top_k", (1, 2, 40, 56, 57, 300, 3000, VOCAB)),
        ("top_p", (0.01, 0.5, 0.9, 0.999)),
        ("min_p", (1.0, 0.3, 0.05, 1e-35)),
    ):
        if rng.random() < 0.4:
            chosen[name] = rng.choice(values)
    return chosen | ({"typical_p": 0.9} if rng.random() < 0.05 else {})


def wrong_tokens(seeds: int = 8) -> int:
    """Over all kinds of rows: how many tokens differ from those of the vocabulary as a whole."""
    chain, wrong = Chain(), 0
    for seed in range(seeds):
        for kind in KINDS:
            rng = random.Random(f"{seed} {kind}")
            rows = [make_row(rng, VOCAB, **settings(rng)) for _ in range(40)]
            logits_RV = logits(kind, 40, seed)
            expected = gumbel_argmax(chain.warp(logits_RV, rows), rows)
            wrong += sum(a != b for a, b in zip(draw(logits_RV, rows, chain), expected, strict=True))
    return wrong


def test_lists_draw_what_the_whole_vocabulary_draws() -> None:
    assert wrong_tokens() == 0


@pytest.mark.parametrize("chosen", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.9}])
def test_ordinary_rows_need_no_more_than_a_list(chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the whole vocabulary was warped")

    monkeypatch.setattr(module, "gumbel_argmax", refuse)
    rows = [make_row(random.Random(i), VOCAB, temperature=0.8, **chosen) for i in range(40)]
    assert None not in draw(logits("peaked", 40, 1), rows, Chain())


def ties_forgotten(patch: pytest.MonkeyPatch) -> None:
    whole = TopK.shorten

    def shorten(self: TopK, listed: Shortlist, rows: list[SamplingRow]) -> None:
        listed.floor_R = np.full_like(listed.floor_R, LOWEST)
        whole(self, listed, rows)

    patch.setattr(TopK, "shorten", shorten)


def every_list_is_enough(patch: pytest.MonkeyPatch) -> None:
    whole = Chain.shorten

    def shorten(self: Chain, listed: Shortlist, rows: list[SamplingRow]) -> None:
        whole(self, listed, rows)
        listed.decided_R = np.isfinite(listed.value_RK[:, 0])

    patch.setattr(Chain, "shorten", shorten)


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "tokens outside of the list never win": lambda patch: patch.setattr(module, "_let_others_in", lambda *_: None),
    "a tie at the end of the list is not seen": ties_forgotten,
    "the rest of the vocabulary weighs nothing": lambda patch: patch.setattr(
        Shortlist, "unlisted_mass", lambda self: np.zeros(len(self.open_R))
    ),
    "every list is enough": every_list_is_enough,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    assert wrong_tokens() > 0


def differing(logits_V: Tensor, values: list[float]) -> tuple[int, int]:
    """How many of the values keep another set than the sort does, and how many the list decided."""
    values = [p for p in values if p < 1]  # 1 keeps everything, and is not handed to top-p
    rows = [make_row(random.Random(0), len(logits_V), top_p=p) for p in values]
    logits_RV = logits_V.repeat(len(values), 1)
    listed = Shortlist.of(logits_RV, 256)
    with np.errstate(all="ignore"):
        TopP().shorten(listed, rows)
    kept_RV = torch.full_like(logits_RV, -torch.inf)
    decided = np.flatnonzero(listed.decided_R)
    kept_RV.scatter_(1, torch.from_numpy(listed.token_RK).flip(1), torch.from_numpy(listed.value_RK).flip(1).contiguous())
    right_RV = by_sorting(logits_RV, torch.tensor([[1 - p] for p in values]))
    return int((kept_RV[decided] != right_RV[decided]).any(dim=1).sum()), len(decided)


def test_top_p_on_a_list_keeps_the_set_of_the_sort_where_rounding_matters_most() -> None:
    counts = {name: differing(logits_V, thresholds(logits_V)) for name, logits_V in distributions().items()}
    assert sum(wrong for wrong, _ in counts.values()) == 0
    assert counts["peaked"][1] >= 5 and counts["few left"][1] >= 5  # most of these values only the sort can tell


def test_without_its_error_bound_top_p_on_a_list_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_p, "HALF_ULP", 0.0)
    monkeypatch.setattr(top_p, "DOUBLE_ERROR", 0.0)
    assert sum(differing(logits_V, thresholds(logits_V))[0] for logits_V in distributions().values()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_holds_every_token_above_its_bound_in_order(kind: str) -> None:
    logits_RV = logits(kind, 30, 3)
    token_RK, value_RK, floor_R, listed_R = likeliest(logits_RV, 64)
    assert listed_R.any()
    for row in np.flatnonzero(listed_R):
        real = value_RK[row] > -np.inf
        tokens, values = token_RK[row][real].tolist(), value_RK[row][real].tolist()
        assert values == [float(logits_RV[row, token]) for token in tokens]
        assert sorted(zip((-value for value in values), tokens, strict=True)) == list(
            zip((-value for value in values), tokens, strict=True)
        )
        assert set(tokens) >= set((logits_RV[row] > float(floor_R[row])).nonzero().flatten().tolist())
        assert len(set(tokens)) == len(tokens) and (len(tokens) >= 64 or floor_R[row] == LOWEST)


def test_the_noise_of_a_few_tokens_is_that_of_the_vocabulary() -> None:
    rng = random.Random(0)
    rows = [make_row(rng, VOCAB, seed=seed) for seed in (0, 1, 2**63 - 1, *(rng.randrange(2**63) for _ in range(20)))]
    keys = [(row.params.seed or 0, row.sequence_index, row.position) for row in rows]
    stream_R = noise_search.streams_of(rows)
    streams = noise.streams(*torch.tensor(keys).T)
    assert stream_R.view(np.int64).tolist() == streams.tolist()
    bits_RV = noise.noise_bits(streams.unsqueeze(1), torch.arange(VOCAB))
    tokens = np.arange(VOCAB)
    assert torch.equal(torch.from_numpy(noise_search.token_bits(stream_R[:, None], tokens)), bits_RV)
    uniform_RV = (bits_RV.double() + 0.5) * 2.0**-52
    for least in (0.0, 0.3, 0.99, 0.9999, 1 - 1e-12):
        found = noise_search.louder_tokens(stream_R, VOCAB, np.full(len(rows), least))
        for tokens_N, uniform_V in zip(found, uniform_RV, strict=True):
            assert set((uniform_V >= least).nonzero().flatten().tolist()) <= set(tokens_N.tolist())
            assert (uniform_V[tokens_N] > least - 1e-8).all()
