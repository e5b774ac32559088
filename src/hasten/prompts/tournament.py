"""``run_tournament``: the best variant, for fewer tokens than evaluating all on all items.

Successive elimination (Even-Dar, Mannor & Mansour, 2006, JMLR 7): all variants that are left answer the same items, in rounds that
double the number of items. After a round, a variant leaves that is shown to be worse than another one, by a test of the pair on the
items of both:

- for scores of 0 and 1, and for metrics without a bound, the exact one-sided sign test over the items where the two differ
  (McNemar, 1947): it says on how many items a variant is better;
- for other scores, the empirical Bernstein bound of the mean difference (Maurer & Pontil, 2009, theorem 4).

Every test has the error probability (1 - level) / (tests in all): ordered pairs of variants times rounds (Bonferroni). So with
probability ``level`` no variant is called worse than another one that it equals or exceeds, at any look. Which items come first is
random, so that they are a sample of all items whatever the order of the file.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hasten.prompts.evaluation import ItemResult
from hasten.prompts.metric import Metric
from hasten.prompts.task import PromptItem
from hasten.quality.intervals import LEVEL

FIRST_ROUND = 16  # items; fewer can show nothing among several variants

# Takes the index of a variant and the items of a round; returns one result per item, in order.
RunRound = Callable[[int, Sequence[PromptItem]], Sequence[ItemResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One variant at the end."""

    variant: str
    num_items: int  # that it answered
    mean: float  # of the scores of these
    num_tokens: int
    beaten_by: str | None  # the variant that it was shown to be worse than; None: it is left

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("variant", "num_items", "mean", "num_tokens", "beaten_by")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tournament:
    standings: tuple[Standing, ...]  # those that are left first, then by their number of items and their mean
    num_items: int  # of the task
    test: str  # "sign test" or "empirical Bernstein"
    level: float

    @property
    def winner(self) -> str | None:
        """The variant that is left alone; None: no difference is shown among those that are left."""
        left = [standing.variant for standing in self.standings if standing.beaten_by is None]
        return left[0] if len(left) == 1 else None

    @property
    def num_tokens(self) -> int:
        return sum(standing.num_tokens for standing in self.standings)

    @property
    def full_tokens(self) -> int:
        """What evaluating all variants on all items costs, by each variant's mean tokens per item."""
        return round(sum(standing.num_tokens / standing.num_items * self.num_items for standing in self.standings))

    def as_dict(self) -> dict[str, Any]:
        names = ("winner", "num_items", "num_tokens", "full_tokens", "test", "level")
        return {name: getattr(self, name) for name in names} | {"standings": [standing.as_dict() for standing in self.standings]}


def run_tournament(
    names: Sequence[str],
    items: Sequence[PromptItem],
    run_round: RunRound,
    *,
    width: float | None,
    level: float = LEVEL,
    seed: int = 0,
) -> Tournament:
    """Return the standings of the variants ``names`` after a tournament on ``items``.

    ``width``: of the range of the metric, for the Bernstein bound; None: the sign test.
    """
    assert len(names) >= 2 and items
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    rounds = round_ends(len(shuffled))
    alpha = (1 - level) / (len(names) * (len(names) - 1) * len(rounds))
    results: list[list[ItemResult]] = [[] for _ in names]
    left, beaten_by = list(range(len(names))), dict[int, int]()
    for start, end in itertools.pairwise([0, *rounds]):
        for index in left:
            found = run_round(index, shuffled[start:end])
            assert len(found) == end - start, "a paired comparison needs one result per item"
            results[index] += found
        scores = {index: [result.score for result in results[index]] for index in left}
        shown = dict(_shown(scores, alpha, width))
        if len(shown) < len(left):  # signs may show each of three variants to be worse than the next
            beaten_by |= shown
            left = [index for index in left if index not in shown]
        if len(left) == 1:
            break
    standings = [
        Standing(
            variant=name,
            num_items=len(results[index]),
            mean=statistics.fmean(result.score for result in results[index]),
            num_tokens=sum(result.num_tokens for result in results[index]),
            beaten_by=names[beaten_by[index]] if index in beaten_by else None,
        )
        for index, name in enumerate(names)
    ]
    standings.sort(key=lambda standing: (standing.beaten_by is not None, -standing.num_items, -standing.mean))
    test = "sign test" if width is None else "empirical Bernstein"
    return Tournament(standings=tuple(standings), num_items=len(items), test=test, level=level)


def bernstein_width(metric: Metric) -> float | None:
    """Return the width of the metric's range, or None where the sign test is the one to use."""
    return None if metric.is_binary or not math.isfinite(metric.high - metric.low) else metric.high - metric.low


def round_ends(num_items: int) -> list[int]:
    """Return the items after each round: ``FIRST_ROUND``, then twice as many each time, then all."""
    ends = []
    end = FIRST_ROUND
    while end < num_items:
        ends.append(end)
        end *= 2
    return [*ends, num_items]


def _shown(scores: dict[int, list[float]], alpha: float, width: float | None) -> list[tuple[int, int]]:
    """Return the pairs (worse, better) that a test shows.

    Each worse one has the best of its betters. ``width``: of the metric's range; None: the sign test.
    """
    ranked = sorted(scores, key=lambda index: -sum(scores[index]))
    shown = []
    for worse in ranked:
        for better in ranked:
            differences = [b - a for a, b in zip(scores[worse], scores[better], strict=True)]
            if better != worse and is_positive(differences, alpha, width):
                shown.append((worse, better))
                break
    return shown


def is_positive(differences: Sequence[float], alpha: float, width: float | None) -> bool:
    """Return whether the differences are positive by a test of error probability ``alpha``.

    ``width``: of the range of the two scores; None: by their signs alone.
    """
    if width is None:
        num_positive, num_negative = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        return sign_test(num_positive, num_negative) <= alpha
    return bernstein_bound(differences, alpha, 2 * width) > 0


def sign_test(num_positive: int, num_negative: int) -> float:
    """Return the probability of as many positive signs or more, were each as likely as a negative one."""
    num = num_positive + num_negative
    return float(Fraction(sum(math.comb(num, k) for k in range(num_positive, num + 1)), 2**num))


def bernstein_bound(values: Sequence[float], alpha: float, width: float) -> float:
    """Return a lower bound of the mean that fails with probability ``alpha`` at most.

    ``width``: of the range that holds every value.
    """
    num = len(values)
    if num < 2:
        return -math.inf
    log_term = math.log(2 / alpha)
    spread = math.sqrt(2 * statistics.variance(values) * log_term / num)
    return statistics.fmean(values) - spread - 7 * width * log_term / (3 * (num - 1))
