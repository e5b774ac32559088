"""The native selector samples the tokens of the PyTorch reference, or leaves a row undecided."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.sampling.oracles import VOCAB
from tests.sampling.rows import make_logits, make_row, make_warper_settings
from tests.sampling.test_sampler import rows_of_every_kind, token_ids
from tests.sampling.test_top_p import distributions, drifting_logits, thresholds
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu, supported_isas
from hasten.ops.cpu.library import NativeLibrary, native_library
from hasten.sampling import native_token_selector
from hasten.sampling.native_token_selector import NativeTokenSelector
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import Sampler
from hasten.sampling.token_selector import TorchTokenSelector


def runnable_isas() -> list[str]:
    library = native_library()
    return supported_isas(library) if isinstance(library, NativeLibrary) else ["no native library"]


def make_selector(isa: str | None, threads: int) -> NativeTokenSelector:
    library = native_library()
    assert isinstance(library, NativeLibrary), library
    return NativeTokenSelector(Cpu(library, isa, threads))


@pytest.fixture(params=runnable_isas())
def selector(request: pytest.FixtureRequest) -> NativeTokenSelector:
    return make_selector(request.param, 2)


def num_wrong(selector: NativeTokenSelector, logits_RV: Tensor, rows: list[SamplingRow]) -> int:
    """Return how many tokens differ from those of the reference."""
    expected = TorchTokenSelector().select(logits_RV, rows)
    return sum(a != b for a, b in zip(selector.select(logits_RV, rows), expected, strict=True))


def num_wrong_at_random(selector: NativeTokenSelector, num_seeds: int = 12) -> int:
    """Return how many tokens are wrong over rows of all kinds and settings: 2,880 for 12 seeds."""
    total, vocab_size = 0, 4096
    for seed in range(num_seeds):
        for kind in ("peaked", "plain", "bf16", "flat", "masked", "few"):
            rng = random.Random(f"{seed} {kind}")
            rows = [make_row(rng, vocab_size, **make_warper_settings(rng, vocab_size)) for _ in range(40)]
            total += num_wrong(selector, make_logits(kind, 40, vocab_size, seed), rows)
    return total


def test_tokens_are_those_of_the_reference(selector: NativeTokenSelector) -> None:
    assert num_wrong_at_random(selector) == 0


@pytest.mark.parametrize("vocab_size, num_rows", [(1, 10), (37, 200), (8192, 200), (151_936, 12)])
@pytest.mark.parametrize("kind", ["plain", "tied", "masked"])
def test_vocabularies_of_any_size(selector: NativeTokenSelector, kind: str, vocab_size: int, num_rows: int) -> None:
    rng = random.Random(f"{kind} {vocab_size}")
    rows = [make_row(rng, vocab_size, **make_warper_settings(rng, vocab_size)) for _ in range(num_rows)]
    logits_RV = make_logits(kind, num_rows, vocab_size)
    assert num_wrong(selector, logits_RV, rows) == 0
    padded_RV = torch.full((num_rows, vocab_size + 5), 99.0)  # a native step returns padded rows
    padded_RV[:, :vocab_size] = logits_RV
    assert num_wrong(selector, padded_RV[:, :vocab_size], rows) == 0


def test_top_p_where_rounding_matters_most(selector: NativeTokenSelector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel leaves most of these values undecided, but not those of well separated tokens."""
    num_undecided = 0
    select = TorchTokenSelector.select

    def counting_select(self: TorchTokenSelector, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        nonlocal num_undecided
        num_undecided += len(rows)
        return select(self, logits_RV, rows)

    cases = {name: (logits_V, thresholds(logits_V)) for name, logits_V in distributions().items()}
    cases |= {f"drifting {spread}": drifting_logits(spread) for spread in (0.0, 0.01)}
    num_decided = {}
    for name, (logits_V, values) in cases.items():
        rows = [make_row(random.Random(i), len(logits_V), top_p=p) for p in values if p < 1 for i in range(3)]
        logits_RV = logits_V.repeat(len(rows), 1)
        expected = TorchTokenSelector().select(logits_RV, rows)
        num_undecided = 0
        with monkeypatch.context() as patch:
            patch.setattr(TorchTokenSelector, "select", counting_select)
            assert selector.select(logits_RV, rows) == expected
        num_decided[name] = len(rows) - num_undecided
    assert num_decided["peaked"] >= 15 and num_decided["few unmasked"] >= 15


@pytest.mark.parametrize("settings", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 50, "top_p": 0.9}])
@pytest.mark.parametrize("vocab_size", [VOCAB, 4096])
def test_ordinary_rows_are_decided(
    selector: NativeTokenSelector, settings: dict[str, Any], vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[int | None]:
        raise AssertionError("rows were left undecided")

    monkeypatch.setattr(TorchTokenSelector, "select", fail)
    rows = [make_row(random.Random(i), vocab_size, temperature=0.8, **settings) for i in range(40)]
    assert None not in selector.select(make_logits("peaked", 40, vocab_size, 1), rows)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_batches_sample_the_tokens_of_the_reference(selector: NativeTokenSelector, seed: int) -> None:
    """A batch has greedy rows, sampling rows, rows with penalties, masks or typical-p, and unusable rows."""
    rng = random.Random(seed)
    rows = rows_of_every_kind(rng, 80)
    logits_RV = make_logits("plain", 80, VOCAB, seed)
    for i in rng.sample(range(80), 9):
        logits_RV[i, rng.choice((slice(None), 30))] = rng.choice((float("nan"), float("inf"), -float("inf")))
    assert token_ids(logits_RV, rows, Sampler(selector)) == token_ids(logits_RV, rows)


def noise_ignores_the_position(patch: pytest.MonkeyPatch) -> None:
    sample_tokens = native_token_selector.sample_tokens

    def faulty(cpu: Cpu, logits_RV: Tensor, settings: bytes, keys: array[int]) -> list[int | None]:
        return sample_tokens(cpu, logits_RV, settings, array("q", [key if i % 2 == 0 else 0 for i, key in enumerate(keys)]))

    patch.setattr(native_token_selector, "sample_tokens", faulty)


def change_settings(change: Callable[..., tuple[Any, ...]]) -> Callable[[pytest.MonkeyPatch], None]:
    pack_settings = native_token_selector.pack_settings
    return lambda patch: patch.setattr(native_token_selector, "pack_settings", lambda *settings: pack_settings(*change(*settings)))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "noise ignores the position": noise_ignores_the_position,
    "noise of another seed": change_settings(lambda seed, *others: (seed ^ 1, *others)),
    "top-p a little off": change_settings(lambda seed, t, p, *others: (seed, t, p * 0.98, *others)),
    "top-k one off": change_settings(lambda seed, t, p, m, k: (seed, t, p, m, k and k + 1)),
    "min-p halved": change_settings(lambda seed, t, p, m, k: (seed, t, p, m / 2, k)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    assert num_wrong_at_random(make_selector(None, 1)) > 0
