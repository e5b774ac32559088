"""95 % intervals against published values, brute-force formulas and their coverage."""

from __future__ import annotations

import math
import random

import pytest

from hasten.quality.intervals import difference_interval, mean_interval, paired_difference_interval, student_t, wilson_interval

# The column for 95 % (two-sided) of any table of Student's t distribution.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 7: 2.365, 10: 2.228, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980}


@pytest.mark.parametrize(("degrees", "expected"), STUDENT.items())
def test_students_t_equals_the_table(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=5.1e-4)


# Columns of one-sided probabilities of a printed table.
ONE_SIDED = {
    0.95: {3: 2.3534, 4: 2.1318, 7: 1.8946, 15: 1.7531, 30: 1.6973, 120: 1.6577},
    0.999: {3: 10.215, 4: 7.173, 10: 4.144, 30: 3.385, 120: 3.160},
}


@pytest.mark.parametrize(("level", "degrees"), [(level, degrees) for level, column in ONE_SIDED.items() for degrees in column])
def test_one_sided_bounds_equal_the_table(level: float, degrees: int) -> None:
    assert student_t(degrees, level, sides=1) == pytest.approx(ONE_SIDED[level][degrees], abs=6e-4)


def central_probability(t: float, degrees: int) -> float:
    """Return P(-t < T < t): Simpson's rule over the density."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    num_steps = 2000
    values = [scale * (1 + (t * i / num_steps) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(num_steps + 1)]
    return 2 * t / num_steps / 3 * (values[0] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]) + values[-1])


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 6, 9, 15, 31, 100, 4000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.9996])
def test_students_t_holds_its_level_of_the_density(degrees: int, level: float) -> None:
    if degrees > 1 or level < 0.99:  # Simpson's rule is too coarse up to t = 1,600
        assert central_probability(student_t(degrees, level), degrees) == pytest.approx(level, abs=1e-6)


def test_the_sum_and_the_expansion_meet() -> None:
    assert student_t(200, 0.9996) == pytest.approx(student_t(201, 0.9996), rel=1e-4)
    assert student_t(200, 0.9996) > student_t(201, 0.9996) > student_t(10**6, 0.9996)


def test_the_interval_of_a_mean_is_that_of_the_textbook() -> None:
    assert mean_interval(10.0, 2.0, 11) == pytest.approx((10 - 2 * 2.228, 10 + 2 * 2.228), abs=2e-3)
    assert mean_interval(10.0, None, 1) is None


# Newcombe, 1998 (Statistics in Medicine 17, 857-872), table I, method 3: score without continuity correction.
@pytest.mark.parametrize(
    ("num_correct", "num_items", "expected"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_intervals_are_the_published_ones(num_correct: int, num_items: int, expected: tuple[float, float]) -> None:
    low, high = wilson_interval(num_correct, num_items)
    assert (round(low, 4), round(high, 4)) == expected
    mirrored = wilson_interval(num_items - num_correct, num_items)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("num_correct", "num_items"), [(0, 1), (1, 1), (3, 7), (50, 100), (999, 1000)])
def test_wilson_bounds_are_where_the_score_test_turns(num_correct: int, num_items: int) -> None:
    """At either bound p, the observed share is 1.96 standard deviations of Binomial(n, p) away."""
    share, bounds = num_correct / num_items, wilson_interval(num_correct, num_items)
    assert bounds[0] <= share <= bounds[1]
    for bound in bounds:
        if 0 < bound < 1:
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / num_items) == pytest.approx(1.959964, abs=1e-5)


# Fagerland, Lydersen & Laake, 2017, Statistical Analysis of Contingency Tables, chapter 8: square-and-add, corrected by Newcombe.
@pytest.mark.parametrize(
    ("table", "difference", "expected"),
    [((59, 6, 16, 80), -0.0621, (-0.1186, -0.0046)), ((1, 1, 7, 12), -0.2857, (-0.5069, -0.0256))],
)
def test_paired_intervals_are_the_published_ones(
    table: tuple[int, int, int, int], difference: float, expected: tuple[float, float]
) -> None:
    both, only_first, only_second, neither = table
    interval = paired_difference_interval(*table)
    assert tuple(round(bound, 4) for bound in interval) == expected
    assert (only_first - only_second) / sum(table) == pytest.approx(difference, abs=1e-4)
    swapped = paired_difference_interval(both, only_second, only_first, neither)
    assert swapped == pytest.approx((-interval[1], -interval[0]), abs=1e-12)


@pytest.mark.parametrize("table", [(5, 0, 0, 0), (0, 0, 0, 5), (300, 0, 0, 200), (0, 9, 0, 0), (0, 4, 5, 0)])
def test_paired_intervals_exist_for_every_table(table: tuple[int, int, int, int]) -> None:
    low, high = paired_difference_interval(*table)
    assert -1 - 1e-9 <= low <= (table[1] - table[2]) / sum(table) <= high <= 1 + 1e-9


def test_paired_intervals_cover_the_true_difference() -> None:
    """Outcomes of two models that agree on most items; unpaired intervals would be three times as wide."""
    rng, hits, width = random.Random(5), 0, 0.0
    for _ in range(600):
        counts = [0, 0, 0, 0]
        for _ in range(200):
            counts[rng.choices(range(4), (0.55, 0.06, 0.03, 0.36))[0]] += 1
        low, high = paired_difference_interval(*counts)
        hits += low <= 0.03 <= high
        width += (high - low) / 600
    assert 0.93 < hits / 600 < 0.985
    assert width < 0.1


# Newcombe, 1998 (Statistics in Medicine 17, 873-890), table II, method 10.
@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ],
)
def test_differences_of_independent_proportions_equal_newcombes(
    counts: tuple[int, int, int, int], expected: tuple[float, float]
) -> None:
    assert difference_interval(*counts) == pytest.approx(expected, abs=5.1e-5)


def test_a_higher_level_gives_a_wider_interval() -> None:
    """z for 99 % is 2.5758 (any table of the normal distribution)."""
    z, share = 2.5758293, 0.3
    center, spread = share + z * z / 40, z * math.sqrt(share * 0.7 / 20 + z * z / 1600)
    expected = (center - spread) / (1 + z * z / 20), (center + spread) / (1 + z * z / 20)
    assert wilson_interval(6, 20, 0.99) == pytest.approx(expected, abs=1e-7)
    assert mean_interval(0.0, 1.0, 3, 0.99) == pytest.approx((-9.925, 9.925), abs=1e-3)
    (low, high), (wide_low, wide_high) = (paired_difference_interval(20, 12, 2, 6, level) for level in (0.95, 0.99))
    assert wide_low < low < high < wide_high
    (low, high), (wide_low, wide_high) = (difference_interval(9, 10, 3, 10, level) for level in (0.95, 0.99))
    assert wide_low < low < high < wide_high
