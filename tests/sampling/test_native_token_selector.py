"""The native draw chooses the token that warping and racing the whole vocabulary chooses, or says that it cannot tell."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.sampling.oracles import VOCAB
from tests.sampling.rows import make_logits, make_row
from tests.sampling.test_draw import logits as likely_logits
from tests.sampling.test_draw import settings
from tests.sampling.test_sampler import rows_of_every_kind, token_ids
from tests.sampling.test_top_p import distributions, drifting, thresholds
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu, runnable
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.sampling import native_token_selector as module
from hasten.sampling.chain import Chain
from hasten.sampling.gumbel_argmax import gumbel_argmax
from hasten.sampling.native_token_selector import NativeTokenSelector
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.sampling.token_selector import TorchTokenSelector


def runnable_here() -> list[str]:
    library = native_library()
    return runnable(library) if isinstance(library, NativeLibrary) else ["no native library"]


@pytest.fixture(params=runnable_here())
def selector(request: pytest.FixtureRequest) -> NativeTokenSelector:
    library = native_library()
    assert isinstance(library, NativeLibrary), library
    return NativeTokenSelector(Cpu(library, request.param, 2))


def refuse(*_: object) -> list[int | None]:
    raise AssertionError("rows were left undecided")


def wrong(selector: NativeTokenSelector, logits_RV: Tensor, rows: list[SamplingRow]) -> int:
    """How many tokens differ from the definition's."""
    expected = gumbel_argmax(Chain().warp(logits_RV, rows), rows)
    return sum(a != b for a, b in zip(selector.choose(logits_RV, rows), expected, strict=True))


def wrong_at_random(selector: NativeTokenSelector, seeds: int = 12) -> int:
    """Over 2,400 rows of all kinds and settings for 12 seeds."""
    found = 0
    for seed in range(seeds):
        for kind in ("peaked", "plain", "bf16", "flat", "few"):
            rng = random.Random(f"{seed} {kind}")
            logits_RV = likely_logits(kind, 40, seed)
            found += wrong(selector, logits_RV, [make_row(rng, logits_RV.shape[1], **settings(rng)) for _ in range(40)])
    return found


def test_tokens_are_those_of_the_definition(selector: NativeTokenSelector) -> None:
    assert wrong_at_random(selector) == 0


@pytest.mark.parametrize("vocab_size, num_rows", [(1, 10), (37, 200), (8192, 200), (151_936, 12)])
@pytest.mark.parametrize("kind", ["plain", "tied", "masked"])
def test_vocabularies_of_any_size(selector: NativeTokenSelector, kind: str, vocab_size: int, num_rows: int) -> None:
    rng = random.Random(f"{kind} {vocab_size}")
    rows = [make_row(rng, vocab_size, **settings(rng)) for _ in range(num_rows)]
    logits_RV = make_logits(kind, num_rows, vocab_size)
    assert wrong(selector, logits_RV, rows) == 0
    padded_RV = torch.full((num_rows, vocab_size + 5), 99.0)  # as a native step hands them out
    padded_RV[:, :vocab_size] = logits_RV
    assert wrong(selector, padded_RV[:, :vocab_size], rows) == 0


def test_top_p_where_rounding_matters_most(selector: NativeTokenSelector) -> None:
    cases = [(logits_V, thresholds(logits_V)) for logits_V in distributions().values()] + [drifting(0.0), drifting(0.01)]
    found = 0
    for logits_V, values in cases:
        rows = [make_row(random.Random(i), len(logits_V), top_p=p) for p in values if p < 1 for i in range(3)]
        found += wrong(selector, logits_V.repeat(len(rows), 1), rows)
    assert found == 0


@pytest.mark.parametrize("chosen", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.9}])
def test_ordinary_rows_are_decided(selector: NativeTokenSelector, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchTokenSelector, "choose", refuse)
    rows = [make_row(random.Random(i), VOCAB, temperature=0.8, **chosen) for i in range(40)]
    assert None not in selector.choose(likely_logits("peaked", 40, 1), rows)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_batches_are_sampled_as_the_portable_way_samples_them(selector: NativeTokenSelector, seed: int) -> None:
    """Greedy beside sampling beside penalties, masks, typical-p and rows without rows_are_finite numbers."""
    rng = random.Random(seed)
    rows = rows_of_every_kind(rng, 80)
    logits_RV = make_logits("plain", 80, VOCAB, seed)
    for i in rng.sample(range(80), 9):
        logits_RV[i, rng.choice((slice(None), 30))] = rng.choice((float("nan"), float("inf"), -float("inf")))
    assert token_ids(logits_RV, rows, Sampler(selector)) == token_ids(logits_RV, rows)


def without_position(patch: pytest.MonkeyPatch) -> None:
    whole = module.sample_tokens

    def sample_tokens(cpu: Cpu, logits_RV: Tensor, packed: bytes, keys: array[int]) -> tuple[list[int | None], list[int]]:
        return whole(cpu, logits_RV, packed, array("q", [key if i % 2 == 0 else 0 for i, key in enumerate(keys)]))

    patch.setattr(module, "sample_tokens", sample_tokens)


def packing(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    whole = module.sampling_settings
    return lambda patch: patch.setattr(module, "sampling_settings", lambda *given: whole(*change(*given)))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "noise without position": without_position,
    "noise of another seed": packing(lambda seed, *others: (seed ^ 1, *others)),
    "top-p a little off": packing(lambda seed, t, p, *others: (seed, t, p * 0.98, *others)),
    "top-k one off": packing(lambda seed, t, p, m, k: (seed, t, p, m, k and k + 1)),
    "min-p half": packing(lambda seed, t, p, m, k: (seed, t, p, m / 2, k)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    library = native_library()
    assert isinstance(library, NativeLibrary), library
    assert wrong_at_random(NativeTokenSelector(Cpu(library, None, 1))) > 0
