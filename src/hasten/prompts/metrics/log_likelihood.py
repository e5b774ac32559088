"""``log_likelihood``: the mean log-probability per token of the reference after the prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.metric import Attempt, ItemScore

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

ARGUMENT: str | None = None


def make_metric(argument: str | None) -> LogLikelihood:
    return LogLikelihood()


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    name: str = "log_likelihood"
    identity: str = "log_likelihood"
    needs_output: bool = False
    low: float = -math.inf
    high: float = 0.0
    is_binary: bool = False

    def score(self, attempt: Attempt, llm: LLM) -> ItemScore:
        """Return that of the most likely reference, in nats.

        A space stands between prompt and reference where neither has white space, as in ``hasten eval --task``.
        """
        is_text = isinstance(attempt.prompt, str)
        text, options = str(attempt.prompt) if is_text else "", TaskOptions(chat=not is_text)
        continuations = [options.continuation(text, reference) for reference in attempt.item.references]
        scores = llm.score(attempt.prompt, continuations, soft_prompt=attempt.soft_prompt)
        # A probability of 0 in floating point is no infinite loss.
        best = max(max(score.mean, _LOWEST) for score in scores)
        return ItemScore(best, sum(len(score.token_ids) for score in scores))

    def close(self) -> None:
        pass


_LOWEST = -1e9
