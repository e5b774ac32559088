"""Scores of task items, with 95 % intervals, and the difference of two models on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.quality.intervals import Interval, paired_difference_interval, wilson_interval
from hasten.quality.tasks import ExactMatch, MultipleChoice

METRICS = ("exact_match", "acc", "acc_norm")


@dataclass(frozen=True, slots=True)
class ExactMatchResult:
    item: ExactMatch
    output: str
    is_correct: bool

    @property
    def outcomes(self) -> Mapping[str, bool]:
        """Whether the item counts as correct, by metric."""
        return {"exact_match": self.is_correct}

    def as_dict(self) -> dict[str, Any]:
        return {"line": self.item.line, "output": self.output, **self.outcomes}


@dataclass(frozen=True, slots=True)
class MultipleChoiceResult:
    item: MultipleChoice
    logprobs: tuple[float, ...]  # of each choice after the prompt, in total

    @property
    def chosen(self) -> int:
        """Index of the most likely choice; the first of equal ones."""
        return _argmax(self.logprobs)

    @property
    def chosen_norm(self) -> int:
        """Index of the choice that is most likely per byte of its UTF-8 text, without the delimiter before it."""
        sizes = [len(choice.encode()) for choice in self.item.choices]
        return _argmax([logprob / size for logprob, size in zip(self.logprobs, sizes, strict=True)])

    @property
    def outcomes(self) -> Mapping[str, bool]:
        return {"acc": self.chosen == self.item.answer, "acc_norm": self.chosen_norm == self.item.answer}

    def as_dict(self) -> dict[str, Any]:
        chosen = {"chosen": self.chosen, "chosen_norm": self.chosen_norm}
        return {"line": self.item.line, "logprobs": list(self.logprobs), **chosen, **self.outcomes}


TaskResult = ExactMatchResult | MultipleChoiceResult


@dataclass(frozen=True, slots=True)
class Score:
    """A share of correct items."""

    metric: str  # one of METRICS
    num_items: int
    num_correct: int

    @property
    def share(self) -> float:
        return self.num_correct / self.num_items

    @property
    def interval(self) -> Interval:
        return wilson_interval(self.num_correct, self.num_items)

    def as_dict(self) -> dict[str, Any]:
        counts = {"num_items": self.num_items, "num_correct": self.num_correct}
        return {"metric": self.metric, **counts, "score": self.share, "interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class Difference:
    """The candidate's share of correct items minus the reference's; the fields count items."""

    metric: str
    both_correct: int
    only_candidate: int
    only_reference: int
    neither: int

    @property
    def difference(self) -> float:
        num_items = self.both_correct + self.only_candidate + self.only_reference + self.neither
        return (self.only_candidate - self.only_reference) / num_items

    @property
    def interval(self) -> Interval:
        return paired_difference_interval(self.both_correct, self.only_candidate, self.only_reference, self.neither)

    def as_dict(self) -> dict[str, Any]:
        names = ("metric", "both_correct", "only_candidate", "only_reference", "neither", "difference")
        return {name: getattr(self, name) for name in names} | {"interval": list(self.interval)}


def match(item: ExactMatch, output: str, *, ignore_case: bool = False) -> ExactMatchResult:
    """Return the result of a generated text, which must equal an answer but for white space at the ends."""

    def normalize(text: str) -> str:
        return text.strip().casefold() if ignore_case else text.strip()

    return ExactMatchResult(item, output, normalize(output) in map(normalize, item.answers))


def summarize(results: Sequence[TaskResult]) -> list[Score]:
    """Return one score per metric that the items have."""
    outcomes = {metric: _outcomes(results, metric) for metric in METRICS}
    return [Score(metric, len(found), sum(found)) for metric, found in outcomes.items() if found]


def differences(candidate: Sequence[TaskResult], reference: Sequence[TaskResult]) -> list[Difference]:
    """Return one difference per metric; the results are of the same items in the same order."""
    assert [result.item for result in candidate] == [result.item for result in reference]
    found = []
    for metric in METRICS:
        pairs = list(zip(_outcomes(candidate, metric), _outcomes(reference, metric), strict=True))
        if pairs:
            counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
            found.append(Difference(metric, *counts))
    return found


def _outcomes(results: Sequence[TaskResult], metric: str) -> list[bool]:
    return [result.outcomes[metric] for result in results if metric in result.outcomes]


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
