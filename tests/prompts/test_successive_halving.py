"""Successive halving: which arms are scored on how many items, and how often the best of many is found."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable

import pytest
from tests.exhaustive import repeats

from hasten.prompts import successive_halving as module
from hasten.prompts.successive_halving import Rung, rungs, successive_halving

NUM_ARMS, NUM_ITEMS = 64, 256


def recorded(scores: list[list[float]]) -> tuple[Callable[[int, int], list[float]], Counter[int]]:
    """Return a function of scores, and the number of items that each arm was asked for."""
    num_scored: Counter[int] = Counter()

    def scores_of(arm: int, num_items: int) -> list[float]:
        num_scored[arm] = max(num_scored[arm], num_items)
        return scores[arm][:num_items]

    return scores_of, num_scored


def planted(seed: int, best_share: float) -> tuple[list[list[float]], int]:
    """Return scores of 0 and 1: one arm has the best share, the others at most 0.6."""
    rng = random.Random(seed)
    best = rng.randrange(NUM_ARMS)
    shares = [best_share if arm == best else rng.uniform(0.2, 0.6) for arm in range(NUM_ARMS)]
    return [[float(rng.random() < share) for _ in range(NUM_ITEMS)] for share in shares], best


def found_share(best_share: float, num: int) -> float:
    found = 0
    for seed in range(num):
        scores, best = planted(seed, best_share)
        found += successive_halving(range(NUM_ARMS), NUM_ITEMS, recorded(scores)[0], seed=seed)[0].arm == best
    return found / num


def test_rungs_halve_the_arms_and_double_the_items() -> None:
    assert rungs(64, 630) == [Rung(64, 10), Rung(32, 30), Rung(16, 70), Rung(8, 150), Rung(4, 310), Rung(2, 630)]
    assert rungs(65, 63) == [Rung(65, 4), Rung(32, 4), Rung(16, 7), Rung(8, 15), Rung(4, 31), Rung(2, 63)]
    assert rungs(5, 30) == [Rung(5, 10), Rung(2, 30)]
    assert [rungs(num, 50) for num in (1, 2, 3)] == [[Rung(1, 50)], [Rung(2, 50)], [Rung(3, 50)]]
    assert rungs(64, 3)[0] == Rung(64, 3)  # fewer items than the least


@pytest.mark.parametrize("num_arms", range(1, 70))
def test_the_cost_is_about_the_logarithm(num_arms: int) -> None:
    found = rungs(num_arms, 1023)
    starts = [0, *(rung.num_items for rung in found)]
    cost = sum(rung.num_arms * (rung.num_items - start) for rung, start in zip(found, starts, strict=False))
    assert found[-1].num_items == 1023 and found[0].num_arms == num_arms
    # The arms halve and the new items double, so each of log2(n) rungs costs as much; rounding up costs an item per arm.
    num = max(1, int(math.log2(num_arms)))
    assert cost <= num_arms * num * 1023 / (2**num - 1) + 2 * num_arms


def test_the_best_of_64_is_found_for_a_tenth_of_the_scores() -> None:
    num = repeats("halvings")
    assert found_share(0.8, num) >= 0.95
    scores, best = planted(0, 0.8)
    scores_of, num_scored = recorded(scores)
    ranked = successive_halving(range(NUM_ARMS), NUM_ITEMS, scores_of)
    assert ranked[0].arm == best and (ranked[0].num_items, ranked[0].mean) == (NUM_ITEMS, statistics.fmean(scores[best]))
    assert num_scored.total() <= 0.1 * NUM_ARMS * NUM_ITEMS + NUM_ARMS
    assert sorted(one.arm for one in ranked) == list(range(NUM_ARMS))
    assert [one.num_items for one in ranked] == sorted((one.num_items for one in ranked), reverse=True)


def test_one_rung_of_as_many_scores_finds_the_best_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the same scores spread evenly over all arms."""
    monkeypatch.setattr(module, "rungs", lambda arms, items: [Rung(arms, items * 61 // 640)])
    assert found_share(0.8, 20) < 0.95


def test_equal_means_are_in_an_order_by_seed_and_not_by_number() -> None:
    scores = [[1.0] * 30] * 8
    winners = [successive_halving(range(8), 30, recorded(scores)[0], seed=seed)[0].arm for seed in range(64)]
    assert len(set(winners)) == 8
    assert winners == [successive_halving(range(8), 30, recorded(scores)[0], seed=seed)[0].arm for seed in range(64)]


def test_a_spent_budget_ends_it_with_the_last_full_rung() -> None:
    scores = [[float(arm == 3)] * 30 for arm in range(8)]
    for limit in range(1, 14):
        calls: list[tuple[int, int]] = []

        def scores_of(arm: int, num_items: int, calls: list[tuple[int, int]] = calls) -> list[float]:
            calls.append((arm, num_items))
            return scores[arm][:num_items]

        ranked = successive_halving(range(8), 30, scores_of, is_spent=lambda calls=calls, limit=limit: len(calls) >= limit)
        assert len(calls) == limit
        assert len(ranked) == min(limit, 8) and (ranked[0].arm == 3) == (limit > 3)
        full = [rung for rung, end in zip(rungs(8, 30), (8, 12, 14), strict=True) if limit >= end]
        assert ranked[0].num_items == (full[-1] if full else rungs(8, 30)[0]).num_items
    assert successive_halving(range(8), 30, lambda arm, num: [], is_spent=lambda: True) == []


def test_a_mean_of_minus_infinity_is_last() -> None:
    scores = [[-math.inf] * 10, [-5.0] * 10, [-7.0] * 10]
    assert [one.arm for one in successive_halving(range(3), 10, recorded(scores)[0])] == [1, 2, 0]
