"""Tournaments find a planted winner among eight and none among equals; uncorrected or unpaired ones are caught."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from tests.exhaustive import repeats

from hasten.prompts import tournament
from hasten.prompts.evaluation import ItemResult
from hasten.prompts.task import PromptItem
from hasten.prompts.tournament import Tournament, bernstein_bound, is_positive, round_ends, run_tournament, sign_test

NUM_VARIANTS = 8
NUM_ITEMS = 512
EQUAL, PLANTED = 0.5, 0.7  # shares of right items; the planted gap is 0.2
ITEMS = [PromptItem(line, {"input": str(line)}, ("x",)) for line in range(1, NUM_ITEMS + 1)]
NAMES = [f"variant {index}" for index in range(NUM_VARIANTS)]

Draw = Callable[[random.Random, float], float]


def bernoulli(rng: random.Random, share: float) -> float:
    return float(rng.random() < share)


def steps(rng: random.Random, share: float) -> float:
    """A score of mean ``share`` in [0, 1] that is neither 0 nor 1, with little spread."""
    return min(1.0, max(0.0, share + rng.choice((-0.2, -0.1, 0.0, 0.1, 0.2))))


def simulate(seed: int, shares: Sequence[float], draw: Draw = bernoulli, width: float | None = None) -> Tournament:
    """Run a tournament of simulated scores: each item's score is drawn before, so that the order of items does not matter."""
    rng = random.Random(seed)
    scores = [[draw(rng, share) for _ in ITEMS] for share in shares]

    def run_round(index: int, items: Sequence[PromptItem]) -> list[ItemResult]:
        return [
            ItemResult(score=scores[index][item.line - 1], output=None, prompt_tokens=10, output_tokens=2, metric_tokens=0)
            for item in items
        ]

    return run_tournament(NAMES[: len(shares)], ITEMS, run_round, width=width, seed=seed)


def test_a_planted_winner_is_found_and_none_among_equals() -> None:
    num = repeats("tournaments")
    with_winner, spent = 0, list[float]()
    for seed in range(num):
        planted = seed % NUM_VARIANTS
        found = simulate(seed, [PLANTED if index == planted else EQUAL for index in range(NUM_VARIANTS)])
        with_winner += found.winner == NAMES[planted]
        spent.append(found.num_tokens / found.full_tokens)
    among_equals = [simulate(10_000 + seed, [EQUAL] * NUM_VARIANTS) for seed in range(num)]
    assert with_winner >= 0.95 * num
    assert sum(found.winner is None for found in among_equals) >= 0.95 * num
    # The promise is stronger: no pair of equals is told apart, at any look.
    assert sum(all(s.beaten_by is None for s in found.standings) for found in among_equals) >= 0.95 * num
    assert sum(spent) / num < 0.9  # equal variants stay until they are beaten


def test_without_the_correction_equals_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: every test at 5 %."""
    monkeypatch.setattr(tournament, "is_positive", lambda differences, alpha, width: is_positive(differences, 0.05, width))
    found = [simulate(seed, [EQUAL] * NUM_VARIANTS) for seed in range(10)]
    assert sum(any(s.beaten_by for s in one.standings) for one in found) >= 9


def test_the_bernstein_bound_finds_a_winner_of_scores_between_0_and_1() -> None:
    num = repeats("tournaments") // 10
    won = [simulate(seed, [0.5, 0.5, 0.7, 0.5], steps, width=1.0) for seed in range(num)]
    assert [one.winner for one in won] == [NAMES[2]] * num
    assert {one.test for one in won} == {"empirical Bernstein"}
    assert [simulate(seed, [0.5] * 4, steps, width=1.0).winner for seed in range(num)] == [None] * num


def test_two_winners_are_no_winner() -> None:
    found = simulate(0, [0.9, 0.9, 0.3, 0.3])
    assert (found.winner, {s.variant for s in found.standings if s.beaten_by is None}) == (None, set(NAMES[:2]))
    losers = {s.variant: s for s in found.standings if s.beaten_by is not None}
    assert losers.keys() == set(NAMES[2:4]) and all(s.beaten_by in NAMES[:2] for s in losers.values())
    assert all(s.num_items < NUM_ITEMS for s in losers.values())
    assert found.num_tokens == 12 * sum(s.num_items for s in found.standings)
    assert found.full_tokens == 12 * 4 * NUM_ITEMS


def paired_scores(rng: random.Random) -> tuple[list[float], list[float]]:
    """Items differ much in difficulty, and the second variant is better on one item in thirteen and never worse."""
    first = [float(rng.random() < 0.5) for _ in range(200)]
    return first, [1.0 if rng.random() < 0.15 else score for score in first]


def test_a_comparison_that_is_not_paired_is_weaker() -> None:
    """Negative control: the same scores in another order show nothing."""
    rng = random.Random(0)
    paired, unpaired = 0, 0
    for _ in range(50):
        first, second = paired_scores(rng)
        paired += is_positive([b - a for a, b in zip(first, second, strict=True)], 0.01, None)
        rng.shuffle(second)
        unpaired += is_positive([b - a for a, b in zip(first, second, strict=True)], 0.01, None)
    assert paired >= 45 and unpaired <= 10


def test_a_round_without_one_result_per_item_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="one result per item"):
        run_tournament(NAMES[:2], ITEMS, lambda index, items: [], width=None)


def test_signs_in_a_circle_eliminate_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three variants of which each beats the next on two items of three."""
    orders = [(3.0, 1.0, 2.0), (2.0, 3.0, 1.0), (1.0, 2.0, 3.0)]
    monkeypatch.setattr(tournament, "FIRST_ROUND", 510)

    def run_round(index: int, items: Sequence[PromptItem]) -> list[ItemResult]:
        scores = [orders[index][item.line % 3] for item in items]
        return [ItemResult(score=s, output=None, prompt_tokens=1, output_tokens=0, metric_tokens=0) for s in scores]

    found = run_tournament(NAMES[:3], ITEMS[:510], run_round, width=None)
    assert found.winner is None and [s.beaten_by for s in found.standings] == [None] * 3


@pytest.mark.parametrize("counts", list(itertools.product(range(6), repeat=2)))
def test_the_sign_test_equals_an_enumeration(counts: tuple[int, int]) -> None:
    num_positive, num = counts[0], sum(counts)
    as_extreme = sum(sum(signs) >= num_positive for signs in itertools.product((0, 1), repeat=num))
    assert sign_test(*counts) == float(Fraction(as_extreme, 2**num))


def test_the_bernstein_bound_is_that_of_the_paper_and_covers() -> None:
    values = [0.1, 0.4, 0.3, 0.9]
    mean = sum(values) / 4
    # V of the paper: the sum over pairs of squared differences over n (n - 1).
    variance = sum((a - b) ** 2 for a, b in itertools.combinations(values, 2)) / (4 * 3)
    log_term = math.log(2 / 0.05)
    expected = mean - math.sqrt(2 * variance * log_term / 4) - 7 * log_term / (3 * 3)
    assert bernstein_bound(values, 0.05, 1.0) == pytest.approx(expected, abs=1e-12)
    assert bernstein_bound([3 * v for v in values], 0.05, 3.0) == pytest.approx(3 * expected, abs=1e-12)
    assert bernstein_bound([0.5], 0.05, 1.0) == -math.inf
    rng = random.Random(1)
    misses = sum(bernstein_bound([rng.betavariate(0.5, 0.5) for _ in range(50)], 0.05, 1.0) > 0.5 for _ in range(400))
    assert misses <= 20


def test_rounds_double() -> None:
    assert round_ends(512) == [16, 32, 64, 128, 256, 512]
    assert (round_ends(100), round_ends(16), round_ends(3)) == ([16, 32, 64, 100], [16], [3])
