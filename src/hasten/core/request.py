"""One prompt and its settings: what a caller hands to the engine. Plain data; nobody mutates it."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``params.seed`` and ``params.max_tokens`` are set by the time a request reaches the scheduler."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0  # the smaller, the sooner (only with the priority ordering)
    arrival: float = 0.0  # seconds on the engine's clock
    exit_layer: int | None = None  # how many layers compute all of its tokens, where that is settled; None: as its exit rule has it
    cache_salt: str = ""  # a tenant: prefix-cache blocks are shared only between requests of equal salt
