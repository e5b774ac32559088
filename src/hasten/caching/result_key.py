"""The key of a result: SHA-256 over everything that decides an output.

Everything counts by default. A field that cannot change an output stands on one of the lists here, with the reason; a test changes
every field of these classes and looks at the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.core.request import Request
from hasten.core.sampling_params import SamplingParams

_NEVER_KEYED = "requests with an early exit rule have no key"
_EXACT = "speculation is exact: no draft changes an output, and requests with a lossy acceptance rule have no key"
_INVARIANT = "batch-invariant: no bit of a logit depends on it"
_LIMIT = "it refuses requests and alters none"
_CACHE = "it decides what is kept, not what is computed"

NOT_IN_KEY: Mapping[type[Any], Mapping[str, str]] = {
    Request: {
        "request_id": "a name",
        "priority": "it decides when, not what",
        "arrival": "it decides when, not what",
        "is_determined": "only determined requests have a key",
        "pins": "requests with pins have no key",
        "use_result_cache": "a request that does not use it has no key",
        "result_ticket": "it holds the key",
        "exit_layer": _NEVER_KEYED,
        "virtual_token_ids": "the digest of the soft prompt stands for them",
    },
    SamplingParams: {
        "exit_rule": _NEVER_KEYED,
        "exit_layer": _NEVER_KEYED,
        "exit_threshold": _NEVER_KEYED,
        "exit_tolerance": _NEVER_KEYED,
        "exit_decay": _NEVER_KEYED,
    },
    EngineOptions: {
        "threads": _INVARIANT,
        "revision": "the digest of the weights stands for it",
        "kv_cache_memory": "the context length that it leaves is in the key",
        "max_num_seqs": _INVARIANT,
        "max_num_batched_tokens": _INVARIANT,
        "prefix_caching": _INVARIANT,
        "max_pins": _CACHE,
        "max_pinned_share": _CACHE,
        "result_cache": _CACHE,
        "result_cache_ttl": _CACHE,
        "result_cache_bytes": _CACHE,
        "result_cache_entries": _CACHE,
        "result_cache_eviction": _CACHE,
        "result_cache_timeout": _CACHE,
        "speculative_method": _EXACT,
        "draft_model": _EXACT,
        "draft_heads": _EXACT,
        "draft_quantization": _EXACT,
        "self_draft_layers": _EXACT,
        "num_speculative_tokens": _EXACT,
        "exits": _NEVER_KEYED,
        "tool_call_parser": "it reads the text of an output, which the cache holds",
        "batching": _INVARIANT,
        "max_batch_delay": "it decides when, not what",
        "scheduling_policy": "it decides when, not what",
        "priority_seconds": "it decides when, not what",
        "max_stop_strings": _LIMIT,
        "max_stop_length": _LIMIT,
        "max_bad_words": _LIMIT,
        "max_bad_word_length": _LIMIT,
        "max_logit_bias": _LIMIT,
        "seed": "it draws the seeds of requests without one, which have no key unless they are greedy",
        "show_progress": "it shows a progress bar",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """What an engine is, beside its options: every part changes the key."""

    weights: str  # digest of the weights and their configuration
    text: str  # digest of the tokenizer, the templates and the default settings
    kernels: str  # the backend and its instruction set
    library: str  # digest of the compiled kernels
    packages: str  # versions of the packages that compute and decode, and the instruction set of PyTorch
    max_model_len: int  # tokens; decides where an output without ``max_tokens`` ends
    version: str  # of hasten


def engine_key(options: EngineOptions, identity: EngineIdentity) -> bytes:
    """Return the part of the key that all requests of an engine share."""
    return _hash(b"hasten/engine/1", _fields(options), [(f.name, getattr(identity, f.name)) for f in dataclasses.fields(identity)])


def no_key_because(request: Request) -> str | None:
    """Return why the request has no key, as a word for statistics; None if it has one."""
    params = request.params
    if not request.use_result_cache:
        return "not_wanted"
    if request.pins:  # they need the engine
        return "pins"
    if params.exit_rule != "none":
        return "early_exit"
    if not params.exact:
        return "lossy_acceptance"
    return None if request.is_determined else "no_seed"


def result_key(request: Request, engine: bytes) -> bytes:
    """Return the key of a request for which ``no_key_because`` is None. ``engine``: its ``engine_key``."""
    params = [(name, value) for name, value in _fields(request.params) if name != "seed" or not request.params.is_seedless]
    rest = [(name, value) for name, value in _fields(request) if name not in ("prompt_token_ids", "params")]
    prompt = array("q", request.prompt_token_ids).tobytes()
    return _hash(b"hasten/result/1", engine, prompt, params, rest)


def _fields(settings: Request | SamplingParams | EngineOptions) -> list[tuple[str, object]]:
    """Return the fields that are in the key, by name."""
    omitted = NOT_IN_KEY[type(settings)]
    values = ((f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.name not in omitted)
    return [(name, sorted(value.items()) if isinstance(value, Mapping) else value) for name, value in values]


def _hash(*parts: object) -> bytes:
    """Return the hash of the parts, each with its length.

    ``repr`` tells all plain values apart, and equal ones are written equally.
    """
    hasher = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode("utf-8", "backslashreplace")
        hasher.update(len(content).to_bytes(8, "little"))
        hasher.update(content)
    return hasher.digest()
