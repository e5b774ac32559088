"""``judge``: the probability that a judge calls the output good.

The judge is the evaluated model itself, or a model behind an OpenAI-compatible endpoint: ``judge:MODEL@URL``. The question is a
template with the variables ``input``, ``output`` and ``reference``, a built-in one or ``judge:FILE``, and with an endpoint
``judge:FILE,MODEL@URL``. The judge chooses between two labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.prompts.base import Variant
from hasten.prompts.endpoint import open_endpoint
from hasten.prompts.judge import EndpointJudge, Judge, ModelJudge
from hasten.prompts.load_variant import load_variant
from hasten.prompts.metric import Attempt, ItemScore, text_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hasten.entrypoints.llm import LLM

ARGUMENT: str | None = "FILE, judge:MODEL@URL or judge:FILE,MODEL@URL"
LABELS = ("good", "bad")
_ENDPOINT = re.compile(r"(?:(?P<file>.*),)?(?P<model>[^,]*)@(?P<url>https?://.*)", re.DOTALL)


def make_metric(argument: str | None) -> JudgeMetric:
    if argument is None:
        return JudgeMetric()
    found = _ENDPOINT.fullmatch(argument)
    file = argument if found is None else found["file"]
    template = DefaultQuestion() if file is None else load_variant(file)
    facts = [] if isinstance(template, DefaultQuestion) else [template.digest]
    if found is None:
        return JudgeMetric(template, identity=text_digest("judge", *LABELS, *facts))
    judge = EndpointJudge(open_endpoint(found["url"], found["model"]))
    identity = text_digest("judge at an endpoint", *LABELS, found["model"], found["url"], *facts)
    return JudgeMetric(template, judge, identity, judge_name=f"{found['model']}@{found['url']}")


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
    judge_name: str = ""  # empty: the evaluated model
    needs_output: bool = True
    low: float = 0.0
    high: float = 1.0
    is_binary: bool = False

    @property
    def name(self) -> str:
        file = "" if isinstance(self.template, DefaultQuestion) else self.template.name
        argument = ",".join(filter(None, (file, self.judge_name)))
        return f"judge:{argument}" if argument else "judge"

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
