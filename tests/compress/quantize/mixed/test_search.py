"""Searches for bits of layers against all assignments."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from tests.exhaustive import repeats
from tests.mixed_models import BITS, CASES, RoundedLayers, demo_six_layers, kl_of_all, small_six_layers, split_heldout
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.mixed.assignment import ModelBytes
from hasten.compress.quantize.mixed.kl_estimate import ERROR_RATE, KlEstimate
from hasten.compress.quantize.mixed.kl_evaluator import KlEvaluator
from hasten.compress.quantize.mixed.search import MAX_CONFIRMATIONS, confirmation_error_rate, search_least_bytes, search_least_kl
from hasten.compress.quantize.mixed.validation_text import Cluster, choose_windows, split_texts
from hasten.core.errors import InvalidOption
from hasten.models.layer_stream import LayerStream
from hasten.quality.intervals import student_t
from hasten.quality.window import Window

Kl = Callable[[tuple[int, ...]], KlEstimate]


def interacting(num_layers: int, seed: int) -> tuple[ModelBytes, Kl, Kl]:
    """Return sizes of layers, and a KL with interactions of layers, measured on two texts."""
    draw = random.Random(seed)
    sizes = [draw.choice([1000, 1300, 2100]) for _ in range(num_layers)]
    layers = [{bits: size * bits for bits in BITS} for size in sizes]
    errors = [{4: 10 ** draw.uniform(-2, -1), 16: 0.0} for _ in range(num_layers)]
    for error in errors:
        error[8] = error[4] * draw.uniform(0.06, 0.2)
    cosines = [[draw.uniform(-0.08, 0.08) for _ in range(num_layers)] for _ in range(num_layers)]

    def kl(bits: tuple[int, ...]) -> float:
        parts = [error[number] for error, number in zip(errors, bits, strict=True)]
        pairs = sum(2 * cosines[i][j] * parts[i] * parts[j] for i in range(num_layers) for j in range(i))
        return sum(part * part for part in parts) + pairs

    def text(factor: float) -> Kl:
        return lambda bits: KlEstimate(factor * kl(bits), 0.03 * factor * kl(bits), 16)

    return ModelBytes(layers=layers, others=5000), text(1.0), text(draw.uniform(0.9, 1.1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [0.002, 0.01, 0.03])
def test_the_bytes_are_near_the_least_though_layers_interact(seed: int, limit: float) -> None:
    sizes, one, other = interacting(6, seed)
    found = search_least_bytes(sizes, one, other, limit)
    assert found.kl_upper <= limit
    assert found.kl_upper in [other(found.bits).upper(confirmation_error_rate(number)) for number in range(1, 9)]
    assert (found.num_bytes, found.kl) == (sizes.total(found.bits), other(found.bits).mean)
    best = min(sizes.total(bits) for bits in product(BITS, repeat=6) if max(one(bits).upper(), other(bits).upper()) <= limit)
    assert found.num_bytes <= 1.1 * best


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_kl_within_bytes_is_near_the_least(seed: int, share: float) -> None:
    sizes, one, other = interacting(6, seed)
    target = int(share * sizes.total((16,) * 6))
    found = search_least_kl(sizes, one, other, target)
    assert found.num_bytes <= target
    best = min(one(bits).mean for bits in product(BITS, repeat=6) if sizes.total(bits) <= target)
    assert one(found.bits).mean <= 1.05 * best


def test_neighbours_are_tried_where_the_prediction_misleads() -> None:
    """Layers 0 and 2 make good for each other at 4 bits, which no sum over layers foresees."""
    sizes = ModelBytes(layers=[{4: 4, 8: 8, 16: 16}] * 3, others=0)

    def kl(bits: tuple[int, ...]) -> KlEstimate:
        total = sum({4: 0.01 + index / 10_000, 8: 0.0001, 16: 0.0}[number] for index, number in enumerate(bits))
        return KlEstimate(total - (0.004 if bits[0] == bits[2] == 4 else 0), 0.0, 16)

    assert search_least_bytes(sizes, kl, kl, 0.019).bits == (4, 8, 4)


def test_an_assignment_that_fails_on_other_text_gets_more_bits() -> None:
    sizes, one, _ = interacting(6, 1)
    worse = 2.0

    def other(bits: tuple[int, ...]) -> KlEstimate:
        return KlEstimate(worse * one(bits).mean, 0.0, 16)

    found, optimist = search_least_bytes(sizes, one, other, 0.01), search_least_bytes(sizes, one, one, 0.01)
    assert other(optimist.bits).upper() > 0.01 >= other(found.bits).upper()
    assert optimist.num_bytes < found.num_bytes < sizes.total((16,) * 6)


def test_text_on_which_nothing_holds_leaves_all_layers_as_they_are() -> None:
    sizes, one, _ = interacting(6, 1)
    found = search_least_bytes(sizes, one, lambda bits: KlEstimate(0.5 * (set(bits) != {16}), 0.0, 16), 0.01)
    assert (found.bits, found.kl_upper) == ((16,) * 6, 0.0)


def test_all_confirmations_together_have_the_error_rate_of_the_bound() -> None:
    assert 0.049 < sum(confirmation_error_rate(number) for number in range(1, MAX_CONFIRMATIONS + 1)) < ERROR_RATE


def test_confirmations_share_the_error_rate() -> None:
    """On the other text the assignment found first keeps the limit at the whole error rate, but not at the half of it."""
    sizes, one, _ = interacting(6, 1)
    first = search_least_bytes(sizes, one, lambda bits: KlEstimate(0.0, 0.0, 16), 0.01).bits
    scale = 0.0099 / KlEstimate(1.0, 0.2, 16).upper() / one(first).mean

    def other(bits: tuple[int, ...]) -> KlEstimate:
        return KlEstimate(scale * one(bits).mean, 0.2 * scale * one(bits).mean, 16)

    confirmed: list[tuple[int, ...]] = []
    found = search_least_bytes(sizes, one, lambda bits: confirmed.append(bits) or other(bits), 0.01)
    uppers = [other(bits).upper(confirmation_error_rate(number)) for number, bits in enumerate(confirmed, 1)]
    assert (confirmed[0], confirmed[-1]) == (first, found.bits)
    assert other(first).upper() < 0.01 < uppers[0]
    assert found.kl_upper == uppers[-1] <= 0.01


@pytest.mark.parametrize(("limit", "bits"), [(0.0, 16), (1e3, 4)])
def test_limits_at_the_ends(limit: float, bits: int) -> None:
    sizes, one, other = interacting(6, 2)
    assert search_least_bytes(sizes, one, other, limit).bits == (bits,) * 6


@pytest.mark.parametrize("limit", [-0.1, math.nan, math.inf])
def test_a_limit_out_of_range_is_refused(limit: float) -> None:
    with pytest.raises(InvalidOption, match="max_kl is out of range"):
        search_least_bytes(*interacting(6, 0), limit)


def test_too_few_bytes_are_refused_with_the_least() -> None:
    sizes, one, other = interacting(6, 0)
    least = sizes.total((4,) * 6)
    with pytest.raises(InvalidOption, match=f"allowed: at least {least}"):
        search_least_kl(sizes, one, other, least - 1)
    assert search_least_kl(sizes, one, other, least).bits == (4,) * 6


@pytest.mark.parametrize("num_layers", [6, 40])
def test_evaluations_are_few_and_reported(num_layers: int) -> None:
    sizes, one, other = interacting(num_layers, 3)
    calls: list[tuple[int, ...]] = []
    reports: list[tuple[int, int]] = []

    def counted(kl: Kl) -> Kl:
        return lambda bits: calls.append(bits) or kl(bits)

    found = search_least_bytes(sizes, counted(one), counted(other), 0.01, lambda done, total: reports.append((done, total)))
    assert [done for done, _ in reports] == list(range(1, len(calls) + 1))
    assert len({total for _, total in reports}) == 1
    assert found.num_evaluations == len(calls) <= reports[0][1] <= 2 * num_layers + 30
    assert [[choice.bits for choice in layer] for layer in found.layers] == [list(BITS)] * num_layers
    assert found.as_dict()["layers"][0][2]["kl"]["mean"] == 0


@dataclass(frozen=True)
class Measured:
    """A model of six layers, and the KL of each window of the first text under all 729 assignments."""

    layers: RoundedLayers
    texts: tuple[list[Cluster], list[Cluster], list[Cluster]]  # to search on, to confirm on, and fresh
    kl_by_bits: dict[tuple[int, ...], Tensor]

    def evaluators(self) -> tuple[Kl, Kl, Kl]:
        one, other, fresh = (KlEvaluator(self.layers.stream, text, self.layers).evaluate for text in self.texts)
        return one, other, fresh

    def means(self) -> dict[tuple[int, ...], float]:
        return {bits: float(self.kl_by_bits[bits].mean()) for bits in CASES}


@pytest.fixture(scope="module", params=range(repeats("mixed precision")))
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Return a small random model for the first number, and the demo with other outliers for each further one.

    CI runs the first number.
    """
    folder = tmp_path_factory.mktemp("six")
    number = request.param
    checkpoint = demo_six_layers(folder, number - 1) if number else small_six_layers(folder, 0)
    texts = heldout_texts(number) if number else random_texts()
    layers = RoundedLayers(LayerStream.open(Checkpoint.open(checkpoint)))
    return Measured(layers, texts, kl_of_all(layers, [window for cluster in texts[0] for window in cluster]))


def random_texts() -> tuple[list[Cluster], list[Cluster], list[Cluster]]:
    draw = torch.Generator().manual_seed(1)
    texts = [[Window(tuple(ids.tolist()), None)] for ids in torch.randint(3, 101, (45, 17), generator=draw)]
    return texts[:15], texts[15:30], texts[30:]


def heldout_texts(number: int) -> tuple[list[Cluster], list[Cluster], list[Cluster]]:
    """Return 15 documents each, in a window of 64 tokens from each. The benchmark has other splits."""
    known, unknown = split_heldout(100 + number, 64)
    one, other = split_texts(known, 64, 30 * 64)
    return one, other, choose_windows(unknown, 64, 15 * 64)


@pytest.mark.parametrize("limit", [0.003, 0.01, 0.03])
def test_a_model_gets_nearly_the_least_bytes_of_all_729_assignments(measured: Measured, limit: float) -> None:
    sizes, means = measured.layers.sizes(), measured.means()
    one, other, fresh = measured.evaluators()
    found = search_least_bytes(sizes, one, other, limit)
    assert one(found.bits).mean == pytest.approx(means[found.bits], rel=1e-2, abs=1e-6)
    best = min(sizes.total(bits) for bits in CASES if means[bits] <= means[found.bits])
    kl = fresh(found.bits)
    upper = kl.mean + student_t(kl.num_clusters - 1) * kl.standard_error
    print(
        f"limit {limit}: {found.bits}, {found.num_bytes} bytes, {found.num_bytes / best:.3f} of the best at equal KL; KL "
        f"{found.kl:.5f}, bound {found.kl_upper:.5f}; KL of fresh text {kl.mean:.5f}, upper bound {upper:.5f}; "
        f"{found.num_evaluations} evaluations"
    )
    assert found.num_bytes <= 1.1 * best
    assert upper <= limit
    assert found.num_bytes < sizes.total((16,) * 6)


@pytest.mark.parametrize("share", [0.3, 0.45, 0.7])
def test_a_model_gets_nearly_the_least_kl_of_all_assignments_within_bytes(measured: Measured, share: float) -> None:
    sizes, means = measured.layers.sizes(), measured.means()
    one, other, _ = measured.evaluators()
    target = int(share * sizes.total((16,) * 6))
    found = search_least_kl(sizes, one, other, target)
    best = min(means[bits] for bits in CASES if sizes.total(bits) <= target)
    assert found.num_bytes <= target
    assert (found.kl, found.kl_upper) == (other(found.bits).mean, other(found.bits).upper())
    assert means[found.bits] <= 1.1 * best
