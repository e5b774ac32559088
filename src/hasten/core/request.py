"""``Request``: one prompt and its settings, as the engine takes them. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixPin:
    """A prefix of a prompt whose KV blocks stay in the cache for a time after their last use."""

    num_tokens: int  # of the prefix; rounded down to a block boundary
    seconds: float  # on the engine's clock, from the time when the prefix was last used


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultTicket:
    """A request whose output the result cache may keep: it was looked up and not found."""

    key: bytes  # SHA-256 over everything that decides the output
    looked_up: float  # seconds of ``time.monotonic``


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``params.seed`` and ``params.max_tokens`` are set before a request reaches the scheduler."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0  # smaller values go first; only the "priority" scheduling policy reads it
    arrival: float = 0.0  # seconds on the engine's clock
    exit_layer: int | None = None  # layers that compute all tokens; None: the exit rule decides later
    cache_salt: str = ""  # the tenant: requests share prefix-cache blocks only if their salts are equal
    is_determined: bool = False  # prompt and settings decide the output: it is greedy, a beam search, or the caller gave a seed
    pins: tuple[PrefixPin, ...] = ()  # of ``initial_token_ids``
    use_result_cache: bool = True  # look the output up, and store it
    result_ticket: ResultTicket | None = None  # None: the output is not for the result cache
    virtual_token_ids: tuple[int, ...] = ()  # of its soft prompt: ids beyond the vocabulary, which only the runner can embed
    soft_prompt_digest: str = ""  # SHA-256 of the embeddings of ``virtual_token_ids``

    @property
    def initial_token_ids(self) -> tuple[int, ...]:
        """The tokens that its sequences begin with: the virtual ones, then the prompt."""
        return self.virtual_token_ids + self.prompt_token_ids

    @property
    def num_initial_tokens(self) -> int:
        return len(self.virtual_token_ids) + len(self.prompt_token_ids)
