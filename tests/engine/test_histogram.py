"""``Histogram`` counts like a brute-force comparison with the bounds."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from hasten.engine.histogram import Histogram


@pytest.mark.parametrize("seed", range(20))
def test_the_buckets_are_those_of_a_comparison_with_each_bound(seed: int) -> None:
    rng = random.Random(seed)
    bounds = sorted(rng.sample(range(100), rng.randrange(1, 12)))
    values = [(rng.choice([rng.uniform(-5, 120), rng.choice(bounds), 0]), rng.choice([1, 1, 3])) for _ in range(200)]
    histogram = Histogram(bounds)
    for value, times in values:
        histogram.add(value, times)
    edges = [float("-inf"), *bounds, float("inf")]
    expected = [sum(times for value, times in values if low < value <= high) for low, high in itertools.pairwise(edges)]
    assert histogram.counts == expected
    assert histogram.sum == pytest.approx(sum(value * times for value, times in values))


def test_its_plain_data_is_a_copy() -> None:
    histogram = Histogram((1, 2.5))
    histogram.add(2.5)
    plain = histogram.as_dict()
    histogram.add(9, 2)
    assert plain == json.loads(json.dumps(plain)) == {"bounds": [1, 2.5], "counts": [0, 1, 0], "sum": 2.5}
    assert histogram.as_dict() == {"bounds": [1, 2.5], "counts": [0, 1, 2], "sum": 20.5}
