"""``FeedbackReport``: the share of good outputs per variant, and whether the best is really better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.prompts.feedback import FeedbackCount
from hasten.quality.intervals import LEVEL, Interval, difference_interval, wilson_interval

SHORT = 8  # characters of a digest that tell two texts of one name apart


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFeedback:
    name: str  # with the beginning of the digest if several texts have the name
    digest: str
    num_good: int
    num_bad: int
    interval: Interval  # of the share, 95 % (Wilson)
    # The best variant's share minus this one's; None for the best one itself.
    difference: float | None
    difference_interval: Interval | None

    @property
    def share(self) -> float:
        return self.num_good / (self.num_good + self.num_bad)

    @property
    def is_worse(self) -> bool:
        """Whether the interval of the difference to the best variant excludes zero."""
        return self.difference_interval is not None and self.difference_interval[0] > 0

    def as_dict(self) -> dict[str, Any]:
        names = ("name", "digest", "num_good", "num_bad", "share", "interval", "difference", "difference_interval", "is_worse")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class FeedbackReport:
    """The variants, best first."""

    variants: tuple[VariantFeedback, ...]

    @property
    def winner(self) -> str | None:
        """The best variant, if it is really better than every other one."""
        best, *others = self.variants
        return best.name if others and all(other.is_worse for other in others) else None

    def as_dict(self) -> dict[str, Any]:
        return {"winner": self.winner, "variants": [variant.as_dict() for variant in self.variants]}


def report_feedback(counts: Sequence[FeedbackCount], level: float = LEVEL) -> FeedbackReport:
    """Return the report of at least one variant.

    Differences have Newcombe's interval for different outputs. Together they hold with probability ``level``: each has the level
    1 - (1 - level) / pairs (Bonferroni), over all pairs, because the best one is chosen by the same feedback.
    """
    ranked = sorted(counts, key=lambda count: (-count.num_good / _num(count), -_num(count), count.variant))
    best, num_pairs = ranked[0], math.comb(len(ranked), 2)
    names = [count.variant for count in ranked]
    variants = []
    for count in ranked:
        difference, interval = None, None
        if count is not best:
            difference = best.num_good / _num(best) - count.num_good / _num(count)
            pair_level = 1 - (1 - level) / num_pairs
            interval = difference_interval(best.num_good, _num(best), count.num_good, _num(count), pair_level)
        variants.append(
            VariantFeedback(
                name=count.variant if names.count(count.variant) == 1 else f"{count.variant}@{count.digest[:SHORT]}",
                digest=count.digest,
                num_good=count.num_good,
                num_bad=count.num_bad,
                interval=wilson_interval(count.num_good, _num(count)),
                difference=difference,
                difference_interval=interval,
            )
        )
    return FeedbackReport(tuple(variants))


def _num(count: FeedbackCount) -> int:
    return count.num_good + count.num_bad
