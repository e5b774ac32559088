"""Confidence intervals of means, proportions and their differences; of 95 % by default."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

Interval = tuple[float, float]

LEVEL = 0.95
_MAX_SERIES = 200  # degrees of freedom, from which on the expansion is as exact as the sum


def student_t(degrees: int, level: float = LEVEL, sides: Literal[1, 2] = 2) -> float:
    """Return how many standard errors a bound of a mean is away, by Student's t distribution.

    ``sides``: 2 for an interval that holds ``level`` of the distribution, 1 for a single bound. The result is exact to 1e-6.
    """
    assert degrees >= 1 and 0 < level < 1
    within = level if sides == 2 else 2 * level - 1  # the share between -t and t
    assert within >= 0
    if degrees > _MAX_SERIES:
        return _expansion(NormalDist().inv_cdf((1 + within) / 2), degrees)
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _central_probability(middle, degrees) < within else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def _central_probability(angle: float, degrees: int) -> float:
    """Return P(-t < T < t) for t = sqrt(degrees) * tan(angle).

    26.7.3 and 26.7.4 of Abramowitz & Stegun, 1964.
    """
    is_odd = degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    term = total = math.cos(angle) if is_odd else 1.0
    for power in range(2 + is_odd, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (power - 1) / power
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total


def _expansion(z: float, degrees: int) -> float:
    """Return the quantile of t for the quantile z of the normal distribution.

    26.7.5 of Abramowitz & Stegun, 1964.
    """
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def mean_interval(mean: float, standard_error: float | None, num_clusters: int, level: float = LEVEL) -> Interval | None:
    """Return the interval of a mean over independent clusters; None without a standard error."""
    if standard_error is None:
        return None
    margin = student_t(num_clusters - 1, level) * standard_error
    return mean - margin, mean + margin


def wilson_interval(num_correct: int, num_items: int, level: float = LEVEL) -> Interval:
    """Return the interval of a proportion (Wilson, 1927)."""
    assert 0 <= num_correct <= num_items and num_items >= 1
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = num_correct / num_items, z**2 / num_items
    center = share + weight / 2
    margin = z * math.sqrt((share * (1 - share) + weight / 4) / num_items)
    low, high = (center - margin) / (1 + weight), (center + margin) / (1 + weight)
    # Exactly 0 and 1 at the ends, where rounding errors remain.
    return (0.0 if num_correct == 0 else low), (1.0 if num_correct == num_items else high)


def difference_interval(correct_1: int, items_1: int, correct_2: int, items_2: int, level: float = LEVEL) -> Interval:
    """Return the interval of the first proportion minus the second, on different items.

    Method 10 of Newcombe, 1998 (Statistics in Medicine 17, 873-890): the two Wilson intervals.
    """
    share_1, share_2 = correct_1 / items_1, correct_2 / items_2
    (low_1, high_1), (low_2, high_2) = wilson_interval(correct_1, items_1, level), wilson_interval(correct_2, items_2, level)
    difference = share_1 - share_2
    return (
        difference - math.hypot(share_1 - low_1, high_2 - share_2),
        difference + math.hypot(high_1 - share_1, share_2 - low_2),
    )


def paired_difference_interval(both: int, only_first: int, only_second: int, neither: int, level: float = LEVEL) -> Interval:
    """Return the interval of the first proportion minus the second, on the same items.

    Arguments are numbers of items. Method 10 of Newcombe, 1998 (Statistics in Medicine 17, 2635-2650): the two Wilson intervals,
    with the correlation of the pairs.
    """
    num_items = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    share_1, share_2 = first / num_items, second / num_items
    (low_1, high_1), (low_2, high_2) = (wilson_interval(n, num_items, level) for n in (first, second))
    correlation = _paired_correlation(both, only_first, only_second, neither)

    def margin(part_1: float, part_2: float) -> float:
        return math.sqrt(max(0.0, part_1**2 - 2 * correlation * part_1 * part_2 + part_2**2))

    difference = share_1 - share_2
    return (
        difference - margin(share_1 - low_1, high_2 - share_2),
        difference + margin(high_1 - share_1, share_2 - low_2),
    )


def _paired_correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Return Newcombe's phi: a positive one is reduced, so that few items do not look too alike."""
    num_items = both + only_first + only_second + neither
    determinant: float = both * neither - only_first * only_second
    if determinant > 0:
        determinant = max(0.0, determinant - num_items / 2)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    return determinant / math.sqrt(margins) if margins else 0.0
