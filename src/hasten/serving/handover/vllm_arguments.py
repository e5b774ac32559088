"""``vllm_command``: the ``vllm serve`` that does what a hasten server with the same options does.

Names and meanings are those of vLLM 0.33. An option that vLLM lacks is a note if it changes no output, and an error otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption
from hasten.core.memory_size import parse_bytes
from hasten.serving.handover.checkpoint_facts import CheckpointFacts, read_facts
from hasten.serving.handover.vllm_speculation import METHODS, speculative_config
from hasten.serving.server_options import ServerOptions

# Options with the same meaning in vLLM, passed where they differ from their defaults. Speed is left to vLLM's own defaults.
SAME = {
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "block_size": "--block-size",
    "scheduling_policy": "--scheduling-policy",
    "seed": "--seed",
    "max_requests": "--max-num-queued-reqs",  # both count requests that run or wait
    "max_headers": "--h11-max-header-count",
}
# Options that the functions below translate.
TRANSLATED = {
    "dtype",
    "revision",
    "max_model_len",
    "kv_cache_memory",
    "kv_cache_dtype",
    "prefix_caching",
    "speculative_method",
    "draft_model",
    "draft_heads",
    "num_speculative_tokens",
    "tool_call_parser",
    "reasoning_parser",
    "show_progress",
    "host",
    "port",
    "api_keys",
    "insecure",  # it permits a host, which is passed
    "allowed_origins",
    "max_n",
    "max_prompts",
}
# Options that vLLM lacks and that change no output: a note where they differ from their defaults.
MISSING = {
    "backend": "vLLM chooses its kernels",
    "threads": "vLLM's CPU backend reads VLLM_CPU_OMP_THREADS_BIND",
    "max_pins": "no prefix is pinned",
    "max_pinned_share": "no prefix is pinned",
    "result_cache": "every request is computed",
    "result_cache_ttl": "every request is computed",
    "result_cache_bytes": "every request is computed",
    "result_cache_entries": "every request is computed",
    "result_cache_eviction": "every request is computed",
    "result_cache_timeout": "every request is computed",
    "draft_quantization": "drafters run in the format of their files",
    "self_draft_layers": "the model's own layers do not draft",
    "batching": "batching is always continuous",
    "max_batch_delay": "batching is always continuous",
    "priority_seconds": "priorities do not age",
    "max_stop_strings": "not limited",
    "max_stop_length": "not limited",
    "max_bad_words": "not limited",
    "max_bad_word_length": "not limited",
    "max_logit_bias": "not limited",
    "admin_keys": "there is one kind of key",
    "access_log": "vLLM writes a log of its own",
    "allowed_hosts": "the Host header is not checked",
    "keep_alive": "the model stays loaded",
    "max_loaded_models": "one model is served",
    "max_body_bytes": "not limited",
    "max_json_depth": "not limited",
    "max_header_bytes": "not limited",
    "max_open_body_bytes": "not limited",
    "max_query_bytes": "not limited",
    "max_messages": "not limited",
    "default_max_tokens": "an output without max_tokens may fill the context",
    "max_queue_seconds": "requests wait without a limit",
    "header_timeout": "not limited",
    "body_timeout": "not limited",
    "request_timeout": "not limited",
    "stall_timeout": "not limited",
    "drain_timeout": "running requests end when the server does",
}
# Options that vLLM lacks and that change outputs -> what to do instead.
REFUSED = {
    "quantization": "Quantise the checkpoint with 'hasten quantize', and serve the new folder",
    "activations": "Leave activations out: vLLM follows the checkpoint's scheme",
    "exits": "Leave exits out: vLLM has no early exit",
}
ALWAYS_NOTED = (
    "vLLM asks for the API key under /v1, /v2 and /inference only, and checks no Host header",
    "an output without max_tokens may fill the context in vLLM",
)


@dataclass(frozen=True, slots=True)
class VllmCommand:
    arguments: tuple[str, ...]  # of the program ``vllm``
    environment: Mapping[str, str]  # beside the variables that the process has
    notes: tuple[str, ...]  # what the server does not do as hasten does


def vllm_command(engine: EngineOptions, server: ServerOptions, models: Mapping[str, str]) -> VllmCommand:
    """Return the equivalent command for one model; ``models``: its path by its name.

    Raises ``InvalidOption`` for several models or keys, and for options that vLLM lacks and that change outputs.
    """
    if len(models) != 1:
        raise InvalidOption("vLLM serves one model at a time", got=", ".join(models), remedy="Name one model")
    changed = {**_changed(engine), **_changed(server)}
    for name, remedy in REFUSED.items():
        if name in changed:
            raise InvalidOption(f"vLLM has no equivalent of {name}", got=changed[name], remedy=remedy)
    ((name, path),) = models.items()
    facts = read_facts(path, engine.tool_call_parser, engine.reasoning_parser)
    arguments = ["serve", facts.model, "--served-model-name", name]
    for part in (_model(engine, facts), _cache(engine), _answers(facts), _web(server)):
        arguments += part
    for option, flag in SAME.items():
        if option in changed:
            arguments += [flag, str(changed[option])]
    if (config := speculative_config(engine)) is not None:
        arguments += ["--speculative-config", json.dumps(config)]
    return VllmCommand(tuple(arguments), _environment(server), (*ALWAYS_NOTED, *_notes(engine, server, facts, changed)))


def _changed(options: EngineOptions | ServerOptions) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    defaults = type(options)()
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _model(engine: EngineOptions, facts: CheckpointFacts) -> Iterable[str]:
    """vLLM's "auto" computes a float32 checkpoint in 16 bits; hasten's keeps float32."""
    yield from ("--dtype", "float32" if engine.dtype == "auto" and facts.dtype == "float32" else engine.dtype)
    yield from ("--max-model-len", "auto" if engine.max_model_len is None else str(engine.max_model_len))
    if engine.revision is not None:
        yield from ("--revision", engine.revision, "--tokenizer-revision", engine.revision)


def _cache(engine: EngineOptions) -> Iterable[str]:
    yield "--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching"
    if engine.kv_cache_memory is not None:
        yield from ("--kv-cache-memory-bytes", str(parse_bytes(engine.kv_cache_memory, "kv_cache_memory")))
    if engine.kv_cache_dtype == "int8":
        yield from ("--kv-cache-dtype", "int8_per_token_head")


def _answers(facts: CheckpointFacts) -> Iterable[str]:
    yield "--enable-prompt-tokens-details"  # cached tokens in every usage
    if facts.tool_call_parser is not None:
        yield from ("--tool-call-parser", facts.tool_call_parser, "--enable-auto-tool-choice")
    if facts.reasoning_parser is not None:
        yield from ("--reasoning-parser", facts.reasoning_parser)


def _web(server: ServerOptions) -> Iterable[str]:
    """vLLM listens on every interface and permits every origin where nothing is said."""
    yield from ("--host", server.host, "--port", str(server.port))
    yield from ("--allowed-origins", json.dumps(list(server.allowed_origins)))


def _environment(server: ServerOptions) -> dict[str, str]:
    """Keys go here, because every user of the machine can read arguments."""
    if len(server.api_keys) > 1:
        got = f"{len(server.api_keys)} keys"
        raise InvalidOption("vLLM reads one API key from its environment", got=got, remedy="Give one key")
    variables = {
        "VLLM_MAX_N_SEQUENCES": str(server.max_n),
        "VLLM_MAX_COMPLETION_PROMPTS": str(server.max_prompts),
        "VLLM_NO_USAGE_STATS": "1",  # hasten sends none either
    }
    if server.api_keys:
        variables["VLLM_API_KEY"] = server.api_keys[0]
    return variables


def _notes(engine: EngineOptions, server: ServerOptions, facts: CheckpointFacts, changed: Mapping[str, Any]) -> Iterator[str]:
    for name, reason in MISSING.items():
        if name in changed:
            yield f"no equivalent of {name}: {reason}"
    if engine.speculative_method == "self_speculation" or (engine.speculative_method == "auto" and not speculative_config(engine)):
        drafters = ", ".join(METHODS)
        yield f"vLLM runs without speculation; name a drafter that it has: {drafters}"
    if server.max_requests is None:
        yield "vLLM's queue has no bound; set max_requests"
    if not facts.is_read:
        yield "the checkpoint is not on this machine, so dtype and parsers are vLLM's own choice; name those that you need"
