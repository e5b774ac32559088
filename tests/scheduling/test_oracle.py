"""Whatever mix of features runs, every request yields the tokens that it yields alone (promise P6)."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from hasten.kv.pins import EVENTS

from ..exhaustive import SUITES, repeats
from .world import FEATURES, World, random_features

NUM_SEEDS, STEPS = repeats("scheduler"), 500
PARTS = NUM_SEEDS // 24


@pytest.mark.parametrize("part", range(PARTS))
def test_no_wrong_token_with_any_mix_of_features(part: int) -> None:
    seeds = range(part, NUM_SEEDS, PARTS)
    worlds = [World(seed, random_features(seed)).run(STEPS) for seed in seeds]
    assert sum(world.wrong for world in worlds) == 0
    assert all(world.finished > 20 for world in worlds)
    events = sum((Counter(world.kv.pins.counts) for world in worlds), Counter())
    assert all(events[event] > 0 for event in EVENTS if event != "removed"), events
    # The next test promises 60 seeds per pair; a part of 24 seeds must at least show every pair twice.
    pairs = Counter(pair for world in worlds for pair in itertools.combinations(sorted(world.seen), 2))
    assert all(pairs[pair] >= 2 for pair in itertools.combinations(sorted(FEATURES), 2)), pairs


def test_every_pair_of_features_is_enabled_in_many_seeds() -> None:
    seeds = range(SUITES["scheduler"].full)
    enabled = Counter(pair for seed in seeds for pair in itertools.combinations(sorted(random_features(seed)), 2))
    assert all(enabled[pair] >= 60 for pair in itertools.combinations(sorted(FEATURES), 2))
