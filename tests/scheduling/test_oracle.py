"""Feature algebra: whatever mix of features runs, every request gives the tokens it gives alone (promise P6)."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from .world import FEATURES, World, wanted_features

SEEDS, STEPS, PARTS = 300, 500, 12


@pytest.mark.parametrize("part", range(PARTS))
def test_no_wrong_token_whatever_the_mix_of_features(part: int) -> None:
    seeds = range(part, SEEDS, PARTS)
    worlds = [World(seed, wanted_features(seed)).run(STEPS) for seed in seeds]
    assert sum(world.wrong for world in worlds) == 0
    assert all(world.finished > 20 for world in worlds)
    # A twelfth of the seeds shows a twelfth of the 20 meetings per pair, and more: see the next test.
    met = Counter(pair for world in worlds for pair in itertools.combinations(sorted(world.seen), 2))
    assert all(met[pair] >= 2 for pair in itertools.combinations(sorted(FEATURES), 2)), met


def test_every_pair_of_features_is_asked_for_in_many_seeds() -> None:
    asked = Counter(pair for seed in range(SEEDS) for pair in itertools.combinations(sorted(wanted_features(seed)), 2))
    assert all(asked[pair] >= 60 for pair in itertools.combinations(sorted(FEATURES), 2))
