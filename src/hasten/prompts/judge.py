"""``Judge``: how likely labels are as the answer to a question about one output, or about two."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hasten.core.errors import HastenError, show
from hasten.prompts.base import Variant
from hasten.prompts.endpoint import ChatAnswer, Endpoint, EndpointRefused

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

TOP_LOGPROBS = 20  # the interface's maximum
MAX_ANSWER_TOKENS = 16  # a label, with a few words around it
MIN_LABEL_SHARE = 0.5  # of the probability; below it the first token tells nothing about the labels


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


class EndpointJudge:
    """A model behind an OpenAI-compatible endpoint.

    The probabilities are those of the first token where the endpoint gives ``top_logprobs``. Otherwise the label that it answers
    has probability 1.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._asks_logprobs = True

    def judge(self, prompt: str, labels: Sequence[str]) -> Judgement:
        """Raises ``HastenError`` if the answer names none of the labels, or more than one."""
        answer = self._ask(f"{prompt}\n\nAnswer with one of these and nothing else: {', '.join(labels)}")
        shares = _label_shares(answer, labels)
        if sum(shares) < MIN_LABEL_SHARE:
            shares = [float(_is_named(label, answer.text)) for label in labels]
            if sum(shares) != 1:
                what = f"the judge {self._endpoint.model} answers with no label"
                raise HastenError(what, got=show(answer.text), allowed=", ".join(labels), remedy="Use another judge")
        total = sum(shares)
        return Judgement(tuple(share / total for share in shares), answer.num_tokens)

    def _ask(self, prompt: str) -> ChatAnswer:
        settings = {"temperature": 0, "seed": 0, "max_tokens": MAX_ANSWER_TOKENS}
        if self._asks_logprobs:
            try:
                return self._endpoint.chat(prompt, **settings, logprobs=True, top_logprobs=TOP_LOGPROBS)
            except EndpointRefused as error:
                if error.status not in (400, 422):
                    raise
                self._asks_logprobs = False  # some endpoints refuse fields that they do not have
        return self._endpoint.chat(prompt, **settings)


def _label_shares(answer: ChatAnswer, labels: Sequence[str]) -> list[float]:
    """Return the probability of each label by the first token: of those that begin one label and no other."""
    shares = [0.0] * len(labels)
    for token, logprob in answer.first_logprobs.items():
        begin = token.strip().strip(".\"'*").casefold()
        begun = [index for index, label in enumerate(labels) if begin and label.casefold().startswith(begin)]
        if len(begun) == 1:
            shares[begun[0]] += math.exp(logprob)
    return shares


def _is_named(label: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE) is not None


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
