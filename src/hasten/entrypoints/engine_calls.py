"""What a caller can ask of an engine beside requests; ``CALLS`` has them by name.

Arguments and results are plain data, by their annotations.
Each call runs between two steps, except for those of ``BESIDE``, which read files or ask a server and need no engine. One runs at
a time, and only those of ``QUICK`` between the steps of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hasten.core.errors import InvalidOption
from hasten.core.kv_file import KvFile
from hasten.core.output import RequestOutput
from hasten.core.request import Request
from hasten.core.result import TokenLogprob
from hasten.entrypoints import pinning
from hasten.entrypoints.soft_prompts import LoadedSoftPrompt
from hasten.entrypoints.statistics import engine_statistics

if TYPE_CHECKING:  # a caller in another process needs the calls' types, and neither torch nor an engine
    from hasten.entrypoints.kv_files import KvFiles
    from hasten.entrypoints.wiring.build_engine import LoadedEngine


@dataclass(frozen=True, slots=True, eq=False)
class EngineAccess:
    """``check`` raises if the caller has left.

    ``yield_step`` does so too, and lets the other requests take a step.
    """

    loaded: LoadedEngine
    check: Callable[[], None]
    yield_step: Callable[[], None]


def statistics(access: EngineAccess) -> dict[str, Any]:
    return engine_statistics(access.loaded.engine)


def result_cache_statistics(access: EngineAccess) -> dict[str, Any] | None:
    return access.loaded.result_cache_stats()


def reset_prefix_cache(access: EngineAccess) -> int:
    return access.loaded.engine.clear_prefix_cache()


def reset_result_cache(access: EngineAccess) -> int:
    """Return how many results there were."""
    cache = access.loaded.result_cache
    if cache is None:
        raise InvalidOption("this engine has no result cache", remedy="Load the model with result_cache=...")
    return cache.clear()


def score(
    access: EngineAccess, request: Request, continuations: list[tuple[int, ...]]
) -> tuple[list[tuple[float, ...]], int | None]:
    """See ``ContinuationScorer.score``. Other requests go on meanwhile, a step each."""
    request = access.loaded.admit(request)
    return access.loaded.engine.continuation_scorer(access.yield_step).score(request, continuations)


def prompt_logprobs(access: EngineAccess, token_ids: tuple[int, ...], top: int) -> list[TokenLogprob | None]:
    """See ``LogitsScorer.prompt_logprobs``. Other requests go on meanwhile, a step each."""
    return list(access.loaded.engine.logits_scorer().prompt_logprobs(token_ids, top, access.yield_step))


def save_kv(access: EngineAccess, token_ids: tuple[int, ...], path: str, cache_salt: str) -> KvFile:
    return _kv_files(access).save(access.loaded.engine, token_ids, path, cache_salt)


def load_kv(access: EngineAccess, path: str, cache_salt: str) -> KvFile:
    return _kv_files(access).load(access.loaded.engine, path, cache_salt)


def clear_kv(access: EngineAccess, token_ids: tuple[int, ...] | None, cache_salt: str) -> int:
    return _kv_files(access).clear(access.loaded.engine, token_ids, cache_salt)


def compute_digest(access: EngineAccess) -> None:
    """Hash the model's files, which saving and loading of KV blocks needs; large ones take seconds."""
    access.loaded.digest.get()


def load_soft_prompt(access: EngineAccess, folder: str) -> LoadedSoftPrompt:
    return access.loaded.soft_prompts.load(folder)


def check_pinnable(access: EngineAccess, num_tokens: int) -> None:
    pinning.check_pinnable(access.loaded.engine.scheduler.kv, num_tokens)


def pin_facts(access: EngineAccess, request: Request, output: RequestOutput) -> dict[str, Any]:
    return pinning.pin_facts(access.loaded.engine, request, output)


def unpin(access: EngineAccess, token_ids: tuple[int, ...] | None, cache_salt: str) -> int:
    return pinning.unpin(access.loaded.engine, token_ids, cache_salt)


def _kv_files(access: EngineAccess) -> KvFiles:
    from hasten.entrypoints.kv_files import KvFiles

    return KvFiles(access.loaded, access.check)


BESIDE = (result_cache_statistics, reset_result_cache, compute_digest)
QUICK = (statistics,)  # read counters, so another call that runs for long need not end first
CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(statistics, reset_prefix_cache, score, prompt_logprobs, save_kv, load_kv, clear_kv, load_soft_prompt),
        *(check_pinnable, pin_facts, unpin),
        *BESIDE,
    )
}
