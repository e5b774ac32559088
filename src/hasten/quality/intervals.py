"""95 % confidence intervals of means, proportions and differences of paired proportions."""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]

LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def student_t(degrees: int) -> float:
    """Return how many standard errors either side of a mean has, by Student's t distribution.

    Exact for 1 and 2 degrees of freedom, else the expansion 26.7.5 of Abramowitz & Stegun, 1964, with an error below 0.2 %.
    """
    assert degrees >= 1
    if degrees == 1:
        return math.tan(math.pi * LEVEL / 2)
    if degrees == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    terms = (
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
        (79 * _Z**9 + 776 * _Z**7 + 1482 * _Z**5 - 1920 * _Z**3 - 945 * _Z) / 92160,
    )
    return _Z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def mean_interval(mean: float, standard_error: float | None, num_clusters: int) -> Interval | None:
    """Return the interval of a mean over independent clusters; None without a standard error."""
    if standard_error is None:
        return None
    margin = student_t(num_clusters - 1) * standard_error
    return mean - margin, mean + margin


def wilson_interval(num_correct: int, num_items: int) -> Interval:
    """Return the interval of a proportion (Wilson, 1927)."""
    assert 0 <= num_correct <= num_items and num_items >= 1
    share, weight = num_correct / num_items, _Z**2 / num_items
    center = share + weight / 2
    margin = _Z * math.sqrt((share * (1 - share) + weight / 4) / num_items)
    low, high = (center - margin) / (1 + weight), (center + margin) / (1 + weight)
    # Exactly 0 and 1 at the ends, where rounding errors remain.
    return (0.0 if num_correct == 0 else low), (1.0 if num_correct == num_items else high)


def paired_difference_interval(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """Return the interval of the first proportion minus the second, on the same items.

    Arguments are numbers of items. Method 10 of Newcombe, 1998 (Statistics in Medicine 17, 2635-2650): the two Wilson intervals,
    with the correlation of the pairs.
    """
    num_items = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    share_1, share_2 = first / num_items, second / num_items
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, num_items), wilson_interval(second, num_items)
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
