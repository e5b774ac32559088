"""What was accepted after a step: the only edge back from the model to the scheduler. Plain data."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # the caller left
    ERROR = "error"  # the model produced no rows_are_finite numbers for this request


class TokenOrigin(enum.StrEnum):
    """How a token came into its answer. All of them are the model's; they differ in what they cost."""

    STEP = "step"  # one step of the model for it alone: nothing had been guessed
    DRAFT = "draft"  # guessed, and accepted
    CORRECTION = "correction"  # what the model says where all guesses were wrong
    BONUS = "bonus"  # what the model says after the last guess of an accepted draft


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities under the model's raw distribution, before any processor."""

    token_id: int
    logprob: float
    rank: int  # 1 for the likeliest token
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens (token id, logprob), likeliest first


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    stop: int | str | None = None  # the stop token or stop string that was met


@dataclass(frozen=True, slots=True)
class Continuation:
    """One line of tokens that goes on (or ends) after this step.

    ``parent`` computed the logits. The first continuation of a parent keeps its sequence; each further one is a fork. A
    parent without continuations dies.
    """

    parent: int  # sequence id
    token_ids: tuple[int, ...]  # at least one; all but the last are a path of its draft
    finish: Finish | None = None
    index: int | None = None  # which answer of its request a fork becomes; None: its parent's


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """What became of one draft."""

    num_drafted: int  # tokens
    depth: int  # of these, on the longest path
    num_accepted: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """Every sequence that was sampled in the step is the parent of a continuation, dropped, or corrupted."""

    continuations: tuple[Continuation, ...]
    dropped: tuple[int, ...] = ()  # sequences that end without a token: beams that lost, requests that are done
    corrupted: tuple[int, ...] = ()  # sequences whose logits were not numbers: they end, and nobody may reuse their blocks
    draft_outcomes: tuple[DraftOutcome, ...] = ()  # on the drafts of the step
    # Sequences whose last token left early -> how many layers computed it.
    exit_layers: Mapping[int, int] = field(default_factory=dict)
