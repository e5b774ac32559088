"""``Judge``: how likely labels are as the answer to a question about one output, or about two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hasten.prompts.base import Variant

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM


@dataclass(frozen=True, slots=True)
class Judgement:
    probabilities: tuple[float, ...]  # one per label; they add up to 1
    num_tokens: int  # computed for it


class Judge(Protocol):
    def judge(self, prompt: str, labels: Sequence[str]) -> Judgement:
        """Return the probabilities of the labels as the answer. Raises ``HastenError``."""


@dataclass(frozen=True, slots=True)
class ModelJudge:
    """A loaded model, which may be the one that is evaluated. It chooses among the labels only."""

    llm: LLM

    def judge(self, prompt: str, labels: Sequence[str]) -> Judgement:
        space = "" if prompt[-1:].isspace() else " "
        choice = self.llm.choose(prompt, [space + label for label in labels])
        num_tokens = len(self.llm.tokenizer.encode(prompt)) + sum(len(score.token_ids) for score in choice.scores)
        return Judgement(choice.probabilities, num_tokens)


def prefer_first(
    judge: Judge, template: Variant, input_text: str, first: str, second: str, labels: tuple[str, str] = ("A", "B")
) -> Judgement:
    """Return the probabilities that the first and the second output are better, averaged over both orders.

    A judge may prefer a place (Wang et al., 2023, "Large language models are not fair evaluators"); the average of both orders
    cancels that. ``template`` has the variables ``input``, ``first`` and ``second``; ``labels`` name the places in its text.
    """
    forward = judge.judge(template.render({"input": input_text, "first": first, "second": second}), labels)
    backward = judge.judge(template.render({"input": input_text, "first": second, "second": first}), labels)
    better = (forward.probabilities[0] + backward.probabilities[1]) / 2
    return Judgement((better, 1 - better), forward.num_tokens + backward.num_tokens)
