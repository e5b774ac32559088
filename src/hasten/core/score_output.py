"""How likely a model finds given texts after a prompt, and which of them the likeliest. Plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutput:
    """One continuation of a prompt, under the model's raw distribution: no setting that shapes sampling acts on it."""

    text: str | None  # as it was given; None: it was given as token ids
    token_ids: tuple[int, ...]  # never empty
    logprobs: tuple[float, ...]  # natural, of each token after the prompt and the tokens before it
    exit_layer: int | None = None  # how many layers computed prompt and continuation, under an exit rule; None: without one

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return math.fsum(self.logprobs)

    @property
    def mean(self) -> float:
        """``total`` per token: a long continuation has no handicap."""
        return self.total / len(self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The likeliest of some continuations, and how it compares to the others."""

    index: int  # among the choices as they were given; of equally likely ones the first
    text: str | None  # as in ``ScoreOutput``
    probabilities: tuple[float, ...]  # softmax of what was compared, totals or means; they add up to 1
    scores: tuple[ScoreOutput, ...]
    exit_layer: int | None = None
