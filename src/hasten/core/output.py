"""What a caller gets back: answers, streamed deltas, metrics and scores. Plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.core.answer import ToolCall, ToolCallDelta
from hasten.core.request import PrefixPin
from hasten.core.result import FinishReason, TokenLogprob, TokenOrigin
from hasten.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from hasten.quality.diagnosis.finding import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer of a request."""

    index: int
    text: str  # from chat: the answer's content, without thoughts and tool calls
    token_ids: tuple[int, ...]  # all of them, those of thoughts and calls too
    cumulative_logprob: float | None = None  # sum of ``logprobs``; None unless the request has ``logprobs``
    score: float | None = None  # beam search only: processed log-probability over length ** length_penalty
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None  # None while it runs
    stop_reason: int | str | None = None  # the matched stop token or stop string
    # One per token; empty for beam search. Answers compare equal whatever their origins, because origins depend on timing.
    origins: tuple[TokenOrigin, ...] = field(default=(), compare=False)
    exit_layers: tuple[int, ...] = ()  # per token, the layers that computed its logits; empty without an exit rule
    # Whether an output that has ended has the form of ``structured_outputs``: False if ``max_tokens``, a stop string or an error
    # ended it too early. None without ``structured_outputs``.
    is_complete: bool | None = None
    reasoning: str | None = None  # from chat: the thought; None without one
    tool_calls: tuple[ToolCall, ...] = ()  # from chat with tools; ``finish_reason`` says how the text ended all the same
    warnings: tuple[str, ...] = ()  # about calls that are malformed, which ``text`` has, or that name an unknown tool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Times in seconds on the engine's clock; counts in tokens."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_prompt_tokens: int = 0  # virtual tokens of a soft prompt included
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    # Prompt tokens in runs of a block and 16 tokens or more that earlier prompts have too, at any position: had the part that
    # varies stood last, the prefix cache could have given them. Never below ``num_cached_tokens``; 0 without prefix caching.
    num_shareable_tokens: int = 0
    num_pinned_tokens: int = 0  # of the longest pin of earlier requests that the prompt began with
    new_pins: tuple[PrefixPin, ...] = ()  # that this request has set and no earlier one had; their tokens are in full blocks
    num_output_tokens: int = 0
    from_result_cache: bool = False  # no step computed the output
    num_preemptions: int = 0
    num_drafts: int = 0  # verified drafts
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    acceptance: str = "exact"  # acceptance rule; "typical" is lossy: answers differ from plain decoding
    exit_rule: str = "none"  # any other rule is lossy
    mean_exit_layer: float | None = None  # over the output tokens; None without an exit rule

    @property
    def ttft(self) -> float | None:
        """Time to first token, queueing included."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens per second after the first token, over all answers."""
        if self.finished is None or self.first_token is None or self.finished <= self.first_token:
            return None
        return (self.num_output_tokens - 1) / (self.finished - self.first_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    seed: int | None = None  # the seed in use; with it the same answer can be sampled again
    error: str | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(arrival=0.0))

    def diagnose(self, params: SamplingParams | None = None) -> tuple[Finding, ...]:
        """Return the faults of the answers, each with the setting to turn next; empty for good ones.

        ``params``: those of the request; the advice depends on them. With ``logprobs`` distributions are measured, too.
        """
        from hasten.quality.diagnosis.diagnose import diagnose_request

        return diagnose_request(self.prompt, self.outputs, params or SamplingParams())


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The part of one answer that one step added."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    origins: tuple[TokenOrigin, ...] = field(default=(), compare=False)
    exit_layers: tuple[int, ...] = ()
    reasoning: str = ""  # as ``tool_calls``, from chat only
    tool_calls: tuple[ToolCallDelta, ...] = ()
    output: RequestOutput | None = None  # the complete output; in the request's last delta only
    # What is known of the request; in the first delta that a step of it gives only, so not from the result cache.
    metrics: RequestMetrics | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRejected:
    """The engine refused a request; the fields are those of the ``InvalidRequest``."""

    request_id: str
    kind: str  # the class, "InvalidRequest" or "PromptTooLong"
    what: str
    got: str | None = None
    allowed: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutput:
    """The log-probabilities of one continuation. Sampling settings do not affect them."""

    text: str | None  # the given text; None if token ids were given
    token_ids: tuple[int, ...]  # never empty
    logprobs: tuple[float, ...]  # natural logarithm, per token
    exit_layer: int | None = None  # layers that computed prompt and continuation; None without an exit rule

    @property
    def total(self) -> float:
        """The log-probability of the continuation."""
        return math.fsum(self.logprobs)

    @property
    def mean(self) -> float:
        """``total`` per token, which does not penalise long continuations."""
        return self.total / len(self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The most likely of some continuations, with the scores of all."""

    index: int  # position among the given choices; the first of equally likely ones
    text: str | None  # as in ``ScoreOutput``
    probabilities: tuple[float, ...]  # softmax of the compared totals or means; they add up to 1
    scores: tuple[ScoreOutput, ...]
    exit_layer: int | None = None
