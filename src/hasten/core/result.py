"""``StepResult``: the tokens that a step accepted, as the scheduler takes them. Plain data."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # the caller cancelled the request
    ERROR = "error"  # the model failed on this request, or no token is allowed


class TokenOrigin(enum.StrEnum):
    """How an output token was computed. Origins differ in cost; the model decides every token."""

    STEP = "step"  # by a step without a draft
    DRAFT = "draft"  # an accepted draft token
    CORRECTION = "correction"  # sampled where all draft tokens were rejected
    BONUS = "bonus"  # sampled after the last token of an accepted draft


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities under the model's raw distribution, before any logits processor."""

    token_id: int
    logprob: float
    rank: int  # 1 for the most likely token
    top: tuple[tuple[int, float], ...] = ()  # most likely tokens (token id, logprob), best first


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    stop: int | str | None = None  # the matched stop token or stop string


@dataclass(frozen=True, slots=True)
class Continuation:
    """Accepted tokens of one sequence.

    ``parent`` computed the logits. The first continuation of a parent keeps its sequence, and each further one is a fork.
    """

    parent: int  # sequence id
    token_ids: tuple[int, ...]  # not empty; all but the last are a path of the draft
    finish: Finish | None = None
    index: int | None = None  # new index of the sequence in its request; None: unchanged


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """The verification of one draft, in tokens."""

    num_drafted: int
    depth: int  # length of the longest path
    num_accepted: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of each sampled sequence.

    Each is the parent of a continuation, or its id is in ``dropped``, ``failed`` or ``corrupted``.
    """

    continuations: tuple[Continuation, ...]
    dropped: tuple[int, ...] = ()  # lost beams: they end without a token
    corrupted: tuple[int, ...] = ()  # logits are not finite: they end, and all their blocks leave the prefix cache
    failed: tuple[int, ...] = ()  # of failed requests: they end, and the blocks of this step never enter the prefix cache
    draft_outcomes: tuple[DraftOutcome, ...] = ()
    exit_layers: Mapping[int, int] = field(default_factory=dict)  # sequence id -> exit layer; last tokens that exited early only
