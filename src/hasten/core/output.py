"""What a caller gets back, whole or step by step. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.core.result import FinishReason, TokenLogprob, TokenOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer of a request."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None  # of the tokens under the raw distribution, if logprobs were asked for
    score: float | None = None  # of a beam: processed log-probability over length ** length_penalty
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None  # None while it runs
    stop_reason: int | str | None = None  # the stop token or stop string that was met
    # Of each token; empty for a beam. It tells what the answer cost, so two answers are equal whatever it is.
    origins: tuple[TokenOrigin, ...] = field(default=(), compare=False)
    # Of each token, how many layers computed the state that it was read from. Empty: all of them, always.
    exit_layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Times in seconds on the engine's clock; counts in tokens."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_drafts: int = 0  # proposed and verified
    num_drafted_tokens: int = 0  # in them
    num_accepted_tokens: int = 0  # of these, the ones that became output
    acceptance: str = "exact"  # the rule; "typical" is lossy: answers are not those of plain decoding
    exit_rule: str = "none"  # any other is lossy
    mean_exit_layer: float | None = None  # of the answers' tokens; None without an exit rule

    @property
    def ttft(self) -> float | None:
        """Time to first token, waiting included."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens after the first one per second, of all answers together."""
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
    seed: int | None = None  # the seed that was used, so that any answer can be drawn again
    error: str | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(arrival=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one step added to one answer."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    origins: tuple[TokenOrigin, ...] = field(default=(), compare=False)
    exit_layers: tuple[int, ...] = ()
    output: RequestOutput | None = None  # the whole request, with the last delta only


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRejected:
    """The engine did not take a request; the parts of the ``InvalidRequest`` that says why."""

    request_id: str
    kind: str  # the class, "InvalidRequest" or "PromptTooLong"
    what: str
    got: str | None = None
    allowed: str | None = None
    remedy: str | None = None
