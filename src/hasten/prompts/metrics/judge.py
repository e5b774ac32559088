"""``judge``: the probability that a judge calls the output good.

The judge is the evaluated model itself unless one is given.
The question is a template with the variables ``input``, ``output`` and ``reference``; the judge chooses between two labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.prompts.base import Variant
from hasten.prompts.judge import Judge, ModelJudge
from hasten.prompts.load_variant import load_variant
from hasten.prompts.metric import Attempt, ItemScore, text_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hasten.entrypoints.llm import LLM

ARGUMENT: str | None = "FILE"
LABELS = ("good", "bad")


def make_metric(argument: str | None) -> JudgeMetric:
    if argument is None:
        return JudgeMetric()
    template = load_variant(argument)
    return JudgeMetric(template, identity=text_digest("judge", *LABELS, template.digest))


@dataclass(frozen=True, slots=True)
class DefaultQuestion:
    name: str = "judge"

    def render(self, variables: Mapping[str, str]) -> str:
        return (
            f"Question:\n{variables['input']}\n\nReference answer:\n{variables['reference']}\n\n"
            f"Answer to judge:\n{variables['output']}\n\n"
            "Compared with the reference, is the answer good or bad? The answer is"
        )


@dataclass(frozen=True, slots=True)
class JudgeMetric:
    template: Variant = field(default_factory=DefaultQuestion)
    judge: Judge | None = None  # None: the evaluated model
    identity: str = "judge"  # changes with template, labels and judge
    labels: tuple[str, str] = LABELS  # the first one is the better
    needs_output: bool = True
    low: float = 0.0
    high: float = 1.0
    is_binary: bool = False

    @property
    def name(self) -> str:
        return "judge" if self.template.name == "judge" else f"judge:{self.template.name}"

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        """Return the probability of the better label; with several references, the highest."""
        assert attempt.output is not None
        judge = self.judge or ModelJudge(llm)
        item, output = attempt.item, attempt.output
        found = [
            judge.judge(self.template.render({"input": item.input_text, "output": output, "reference": reference}), self.labels)
            for reference in item.references
        ]
        return ItemScore(max(one.probabilities[0] for one in found), sum(one.num_tokens for one in found))

    def close(self) -> None:
        pass
