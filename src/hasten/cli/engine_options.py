"""The fields of ``EngineOptions`` as options, and the loading of a model with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.options import Given, OptionGroup
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

HELP = {
    "dtype": "Of weights and KV cache: auto (the checkpoint's), float32, bfloat16 or float16.",
    "quantization": "Weights in int8 or int4, with int8 activations; or int8-weight-only, int4-weight-only: float activations.",
    "kv_cache_dtype": "Of the KV cache: auto (the model's) or int8.",
    "backend": "cpu (native kernels), torch, or auto: the native ones where they run.",
    "threads": "Threads that compute; one per rows_are_finite core if left out.",
    "revision": "Branch, tag or commit of a model of the hub.",
    "max_model_len": "Longest prompt and answer together, in tokens; the model's own, reduced to what fits, if left out.",
    "kv_cache_memory": "Memory of the KV cache, such as 4GiB; half of what is free if left out.",
    "block_size": "Tokens per block of the KV cache.",
    "max_num_batched_tokens": "Most tokens per step; longer prompts are computed in chunks.",
    "prefix_caching": "Keep the KV of prompts, and compute shared beginnings once.",
    "speculative_method": "Guess tokens, verify several in a step; the output stays the same. auto (whatever pays), off, or one alone: "
    "prompt_lookup, suffix, draft_model, medusa, eagle or self_speculation.",
    "draft_model": "A smaller model of the same vocabulary, for guesses.",
    "draft_heads": "Medusa heads or an EAGLE-3 head of the model, for guesses.",
    "draft_quantization": "Weights of what guesses (draft model, heads, the vocabulary of exits), as --quantization; auto: four bits "
    "where the model is quantised.",
    "self_draft_layers": "Layers of the model itself that guess for all of it; if left out, with --exits, as many as should pay best.",
    "num_speculative_tokens": "Tokens of a guess, at most; the drafter's own number if left out.",
    "exits": "Trained exits of the model, for --exit-rule: a folder, a hub id or demo-exits.",
    "max_num_seqs": "Sequences that run at a time.",
    "batching": "continuous, dynamic or static.",
    "max_batch_delay": "Seconds that dynamic batching waits for a batch to fill.",
    "scheduling_policy": "fcfs (first come, first served) or priority.",
    "priority_seconds": "Seconds of waiting that one level of priority is worth.",
}
# Of no use to one conversation.
_MANY = ("max_num_seqs", "batching", "max_batch_delay", "scheduling_policy", "priority_seconds")
# Of no use where a text is only read: nothing is guessed, and no token leaves early.
_WRITING = (
    "speculative_method",
    "draft_model",
    "draft_heads",
    "draft_quantization",
    "self_draft_layers",
    "num_speculative_tokens",
    "exits",
)

ENGINE = OptionGroup("engine", "Engine", EngineOptions, HELP)
ENGINE_OF_ONE = OptionGroup("engine", "Engine", EngineOptions, {n: text for n, text in HELP.items() if n not in _MANY})
ENGINE_OF_READING = OptionGroup(
    "engine", "Engine", EngineOptions, {n: t for n, t in ENGINE_OF_ONE.help.items() if n not in _WRITING}
)

Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
MODEL_HELP = "A folder, a model of the Hugging Face hub, or 'demo'."
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help=f"{MODEL_HELP} The same as the argument.")]
ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)]


def one_model(argument: str | None, option: str | None) -> str:
    """The model, named as an argument or with ``--model``. Raises ``InvalidOption`` if it is named by neither or by both."""
    if (argument is None) == (option is None):
        got = "no model" if argument is None else f"{argument} and --model {option}"
        raise InvalidOption("one model is needed", got=got, remedy="Name it once, for instance: demo")
    return argument or option or ""


def load(model: str, given: Given, *, quiet: bool = False) -> LLM:
    """The model, ready to run. Bars go to standard error, and only where someone looks."""
    from hasten.entrypoints.llm import LLM

    return LLM(model, show_progress=not quiet, **given)
