"""``Evaluation``: the scores of a variant, with interval and cost; and the comparison of several."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.prompts.task import PromptItem
from hasten.quality.intervals import LEVEL, Interval, mean_interval, paired_difference_interval, wilson_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    score: float
    output: str | None  # the generated text; None for a metric that needs none
    prompt_tokens: int
    output_tokens: int
    metric_tokens: int  # computed for the score

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens + self.metric_tokens

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Results in the order of the items. An item and its result have the same index."""

    variant: str  # its name
    metric: str
    low: float  # the range of the metric
    high: float
    items: tuple[PromptItem, ...]
    results: tuple[ItemResult, ...]
    seconds: float  # of this call; kept results take none

    @property
    def scores(self) -> list[float]:
        return [result.score for result in self.results]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the mean over items; None for a single item with a score that is not 0 or 1."""
        return score_interval(self.scores, self.low, self.high)

    @property
    def prompt_tokens(self) -> int:
        return sum(result.prompt_tokens for result in self.results)

    @property
    def output_tokens(self) -> int:
        return sum(result.output_tokens for result in self.results)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts, outputs and the metric."""
        return sum(result.num_tokens for result in self.results)

    @property
    def mean_prompt_tokens(self) -> float:
        """What the prompt costs per request, in tokens."""
        return self.prompt_tokens / len(self.results)

    def as_dict(self) -> dict[str, Any]:
        names = ("variant", "metric", "mean", "seconds", "prompt_tokens", "output_tokens", "num_tokens", "mean_prompt_tokens")
        pairs = zip(self.items, self.results, strict=True)
        return {
            **{name: getattr(self, name) for name in names},
            "interval": None if self.interval is None else list(self.interval),
            "items": [{"line": item.line, **result.as_dict()} for item, result in pairs],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDifference:
    """The mean of the first variant minus that of the second, on the same items."""

    first: str
    second: str
    difference: float
    interval: Interval | None

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"is_real": self.is_real}


def compare_evaluations(evaluations: Sequence[Evaluation], level: float = LEVEL) -> list[ScoreDifference]:
    """Return the difference of the best variant to each other one, best first.

    The intervals hold together with probability ``level``: each has the level 1 - (1 - level) / pairs (Bonferroni), over all pairs,
    because the best one is chosen by the same scores.
    """
    ranked = sorted(evaluations, key=lambda evaluation: -evaluation.mean)
    num_pairs = math.comb(len(ranked), 2)
    return [score_difference(ranked[0], other, 1 - (1 - level) / num_pairs) for other in ranked[1:]]


def score_difference(first: Evaluation, second: Evaluation, level: float = LEVEL) -> ScoreDifference:
    """Return the paired difference of two variants on the same items in the same order.

    Newcombe's interval for scores of 0 and 1, else Student's t over the differences item by item.
    """
    assert first.items == second.items, "a paired comparison needs the same items"
    pairs = list(zip(first.scores, second.scores, strict=True))
    differences = [one - other for one, other in pairs]
    if _are_binary(first.scores) and _are_binary(second.scores):
        both, only_first, only_second, neither = (pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))
        interval: Interval | None = paired_difference_interval(both, only_first, only_second, neither, level)
    else:
        width = first.high - first.low
        interval = _t_interval(differences, -width, width, level)
    return ScoreDifference(first=first.variant, second=second.variant, difference=statistics.fmean(differences), interval=interval)


def score_interval(scores: Sequence[float], low: float, high: float, level: float = LEVEL) -> Interval | None:
    """Return the interval of a mean, within the metric's range.

    It is Wilson's for scores of 0 and 1, else Student's t.
    """
    if _are_binary(scores):
        return wilson_interval(sum(score == 1 for score in scores), len(scores), level)
    return _t_interval(scores, low, high, level)


def _are_binary(scores: Sequence[float]) -> bool:
    return all(score in (0, 1) for score in scores)


def _t_interval(values: Sequence[float], low: float, high: float, level: float) -> Interval | None:
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    found = mean_interval(statistics.fmean(values), error, len(values), level)
    return found and (max(low, found[0]), min(high, found[1]))
