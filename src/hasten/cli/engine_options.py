"""The fields of ``EngineOptions`` as command options, and loading a model with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.options import OptionGroup, OptionValues
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

HELP = {
    "dtype": "Data type of weights and KV cache: auto (the checkpoint's), float32, bfloat16 or float16.",
    "quantization": "Quantise weights: int8 or int4 (with int8 activations), int8-weight-only or int4-weight-only.",
    "activations": "Inputs of integer weights in a quantised checkpoint: auto (as its scheme says), int8 or float "
    "(16-bit integers for codes).",
    "kv_cache_dtype": "Data type of the KV cache: auto (the model's) or int8.",
    "backend": "cpu (native kernels), torch, or auto (native kernels where they run).",
    "threads": "Number of compute threads; one per usable core if left out.",
    "revision": "Branch, tag or commit of a hub model.",
    "max_model_len": "Maximum tokens of prompt and output; the model's limit, reduced to what fits, if left out.",
    "kv_cache_memory": "Memory of the KV cache, such as 4GiB; a quarter of the free memory if left out.",
    "block_size": "Tokens per block of the KV cache.",
    "max_num_batched_tokens": "Maximum tokens per step; longer prompts are computed in chunks.",
    "prefix_caching": "Keep the KV cache of prompts, and compute shared prefixes once.",
    "max_pins": "Maximum prefixes that are pinned at a time.",
    "max_pinned_share": "Maximum share of the KV blocks that pins may hold.",
    "result_cache": "Return stored outputs of equal requests: memory:, sqlite:PATH, sqlite: (a file in hasten's cache folder) "
    "or redis://HOST.",
    "result_cache_ttl": "Seconds that a result is kept.",
    "result_cache_bytes": "Maximum size of the result cache, such as 1GiB.",
    "result_cache_entries": "Maximum results in the result cache.",
    "result_cache_eviction": "Which results a full result cache drops: lru (least recently used) or lfu (least frequently used).",
    "result_cache_timeout": "Seconds that a request waits for the result cache.",
    "speculative_method": "Speculative decoding: auto (the default: where it pays and changes no output), off, or one drafter: "
    "prompt_lookup, suffix, draft_model, medusa, eagle or self_speculation.",
    "draft_model": "A smaller model with the same vocabulary that drafts: a folder, a GGUF file, a hub id or demo-draft.",
    "draft_heads": "Medusa heads or an EAGLE-3 head of the model that draft.",
    "draft_quantization": "Quantise the weights that draft (draft model, draft heads, lm_head of the exits), as --quantization; "
    "auto: four bits with --quantization.",
    "self_draft_layers": "First layers of the model that draft; if left out, with --exits, chosen by their expected speed.",
    "num_speculative_tokens": "Maximum tokens of a draft; the drafter's own number if left out.",
    "exits": "Trained early exits of the model, for --exit-rule: a folder, a hub id or demo-exits.",
    "tool_call_parser": "How the model writes tool calls, by the name of vLLM's parser, or none; by the chat template if left out.",
    "reasoning_parser": "How the model writes thoughts, by the name of vLLM's parser, or none; by the chat template if left out.",
    "max_num_seqs": "Maximum sequences that run at a time.",
    "batching": "continuous, dynamic or static.",
    "max_batch_delay": "Seconds that dynamic batching waits for a batch to fill.",
    "scheduling_policy": "fcfs (first come, first served) or priority.",
    "priority_seconds": "Seconds of waiting that equal one level of priority.",
    "max_stop_strings": "Maximum stop strings of a request.",
    "max_stop_length": "Maximum characters of a stop string.",
    "max_bad_words": "Maximum bad words of a request; it may have 16 times as many sequences of --bad-words-ids.",
    "max_bad_word_length": "Maximum characters of a bad word, and maximum tokens of a sequence of --bad-words-ids.",
    "max_logit_bias": "Maximum token ids with a bias of a request.",
}
_BATCH_OPTIONS = ("max_num_seqs", "batching", "max_batch_delay", "scheduling_policy", "priority_seconds")
_PARSER_OPTIONS = ("tool_call_parser", "reasoning_parser")
_PIN_OPTIONS = ("max_pins", "max_pinned_share")
_RESULT_CACHE_OPTIONS = (
    "result_cache",
    "result_cache_ttl",
    "result_cache_bytes",
    "result_cache_entries",
    "result_cache_eviction",
    "result_cache_timeout",
)
_DECODING_OPTIONS = (
    "speculative_method",
    "draft_model",
    "draft_heads",
    "draft_quantization",
    "self_draft_layers",
    "num_speculative_tokens",
    "exits",
)

ENGINE = OptionGroup("engine", "Engine", EngineOptions, HELP)
SINGLE_REQUEST_ENGINE = ENGINE.without(_BATCH_OPTIONS)
SCORING_ENGINE = SINGLE_REQUEST_ENGINE.without((*_DECODING_OPTIONS, *_PARSER_OPTIONS, *_PIN_OPTIONS, *_RESULT_CACHE_OPTIONS))
BENCHMARK_ENGINE = ENGINE.without(_RESULT_CACHE_OPTIONS)  # a benchmark measures the engine

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
MODEL_HELP = "A folder, a GGUF file, a model of the Hugging Face hub, or 'demo'."
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=f"{MODEL_HELP} The same as the argument.")]
ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)]


def model_name(argument: str | None, option: str | None) -> str:
    """Return the model given as an argument or with ``--model``.

    Raises ``InvalidOption`` for neither or both.
    """
    if (argument is None) == (option is None):
        got = "no model" if argument is None else f"{argument} and --model {option}"
        raise InvalidOption("one model is needed", got=got, remedy="Name it once, for instance: demo")
    return argument or option or ""


def load_llm(model: str, engine: OptionValues) -> LLM:
    """Return the loaded model. Progress bars go to standard error, and only to a terminal."""
    from hasten.entrypoints.llm import LLM

    return LLM(model, show_progress=True, **engine)
