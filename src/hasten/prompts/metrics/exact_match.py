"""``exact_match``: 1 if the output equals a reference, but for white space at the ends, else 0.

Outputs are compared as ``hasten eval --task`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.core.errors import InvalidOption, show
from hasten.prompts.metric import Attempt, ItemScore
from hasten.quality.task_scores import match
from hasten.quality.tasks import ExactMatch

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

ARGUMENT: str | None = "ignore_case"


def make_metric(argument: str | None) -> ExactMatchMetric:
    if argument not in (None, ARGUMENT):
        allowed = f"exact_match or exact_match:{ARGUMENT}"
        raise InvalidOption("exact_match has no such form", got=show(argument), allowed=allowed)
    return ExactMatchMetric(ignore_case=argument is not None)


@dataclass(frozen=True, slots=True)
class ExactMatchMetric:
    ignore_case: bool = False
    needs_output: bool = True
    low: float = 0.0
    high: float = 1.0
    is_binary: bool = True

    @property
    def name(self) -> str:
        return f"exact_match:{ARGUMENT}" if self.ignore_case else "exact_match"

    @property
    def identity(self) -> str:
        return self.name

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        assert attempt.output is not None
        item = ExactMatch(attempt.item.line, attempt.item.input_text, attempt.item.references)
        return ItemScore(float(match(item, attempt.output, ignore_case=self.ignore_case).is_correct))

    def close(self) -> None:
        pass
