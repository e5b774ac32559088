"""Choices of options against all choices tried."""

import random
import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.compress.quantize.mixed.allocation import Option, minimize

NUMBERS = st.one_of(st.integers(0, 6), st.floats(0, 1))
LAYERS = st.lists(st.lists(st.builds(Option, NUMBERS, NUMBERS), min_size=1, max_size=4), max_size=5)


def sums(layers: list[list[Option]], indices: tuple[int, ...]) -> tuple[float, float]:
    cost = weight = 0.0
    for options, index in zip(layers, indices, strict=True):
        cost, weight = cost + options[index].cost, weight + options[index].weight
    return cost, weight


def best_of_all(layers: list[list[Option]], limit: float) -> tuple[float, float] | None:
    every = (sums(layers, indices) for indices in product(*(range(len(options)) for options in layers)))
    return min((pair for pair in every if pair[1] <= limit), default=None)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(LAYERS, st.one_of(st.integers(0, 20), st.floats(0, 5)))
def test_the_choice_is_the_best_of_all(layers: list[list[Option]], limit: float) -> None:
    indices = minimize(layers, limit)
    expected = best_of_all(layers, limit)
    if expected is None:
        assert indices is None
    else:
        assert indices is not None
        assert sums(layers, indices) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(LAYERS.filter(bool), st.data())
def test_a_limit_that_a_choice_meets_exactly_counts_as_met(layers: list[list[Option]], data: st.DataObject) -> None:
    indices = tuple(data.draw(st.integers(0, len(options) - 1)) for options in layers)
    limit = sums(layers, indices)[1]
    found = minimize(layers, limit)
    assert found is not None
    assert sums(layers, found) == best_of_all(layers, limit)


def instance(num_layers: int, seed: int) -> list[list[Option]]:
    """Return layers of three shapes with bits 3, 4, 8 and 16."""
    draw = random.Random(seed)
    layers = []
    for _ in range(num_layers):
        size, sensitivity = draw.choice([1_000_003, 1_500_017, 700_001]), 10 ** draw.uniform(-5, -2)
        noise = [draw.uniform(0.5, 2) for _ in range(4)]
        kls = [sensitivity * factor * share for factor, share in zip(noise, (1, 1 / 4, 1 / 1024, 0), strict=True)]
        layers.append([Option(size * bits // 16, kl) for bits, kl in zip((3, 4, 8, 16), kls, strict=True)])
    return layers


@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_seven_layers_by_bytes_and_by_kl(seed: int) -> None:
    layers = instance(7, seed)
    swapped = [[Option(option.weight, option.cost) for option in options] for options in layers]
    for share in (0.5, 0.1, 0.01):
        max_kl = share * sum(options[0].weight for options in layers)
        indices = minimize(layers, max_kl)
        assert indices is not None
        assert sums(layers, indices) == best_of_all(layers, max_kl)
        num_bytes = (0.2 + share) * sum(options[3].cost for options in layers)
        indices = minimize(swapped, num_bytes)
        assert indices is not None
        assert sums(swapped, indices) == best_of_all(swapped, num_bytes)


def test_two_hundred_layers_take_less_than_a_second() -> None:
    layers = instance(200, 0)
    started = time.process_time()
    indices = minimize(layers, 0.1 * sum(options[0].weight for options in layers))
    assert time.process_time() - started < 1
    assert indices is not None
    assert indices == minimize(layers, 0.1 * sum(options[0].weight for options in layers))


def test_costs_in_proportion_to_weights_end_with_a_good_choice() -> None:
    """Subset sums: the kept prefixes are bounded, and the result is within a thousandth of the relaxed bound."""
    draw = random.Random(0)
    sizes = [draw.randrange(10**6, 2 * 10**6) for _ in range(24)]
    layers = [[Option(size * bits + draw.randrange(10), size * (16 - bits)) for bits in (3, 4, 8, 16)] for size in sizes]
    limit = 5 * sum(sizes)
    indices = minimize(layers, limit)
    assert indices is not None
    cost, weight = sums(layers, indices)
    assert weight <= limit
    assert cost <= 1.001 * (16 * sum(sizes) - limit)


def test_no_layers_cost_nothing() -> None:
    assert minimize([], 0.0) == ()
