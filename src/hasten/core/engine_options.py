"""``EngineOptions``: the engine's options, shared by Python, the command line and configuration files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import InvalidOption, show
from hasten.core.field_type import MAX_TEXT, Length, OneOf, Range
from hasten.core.memory_size import MAX_BYTES, parse_bytes
from hasten.core.renamed import RENAMED_ENGINE_OPTIONS, remedy_for_unknown

MODEL_FREE = ("prompt_lookup", "suffix")  # drafters that read only the sequence's tokens
DRAFTERS = (*MODEL_FREE, "draft_model", "medusa", "eagle", "self_speculation")
ACTIVATIONS = ("auto", "int8", "float")
EVICTIONS = ("lru", "lfu")
QUANTIZATIONS = ("int8", "int4", "int8-weight-only", "int4-weight-only")

Name = Annotated[str, Length(1, MAX_TEXT)]
Threads = Annotated[int, Range(1, 1024)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
# Limits of what the scheduler's own settings share. Beyond them, sizes of a step's buffers would exceed any machine's memory.
ContextLength = Annotated[int, Range(1, 2**24)]
MaxNumSeqs = Annotated[int, Range(1, 2**14)]
MaxNumBatchedTokens = Annotated[int, Range(1, 2**20)]
Batching = Annotated[str, OneOf(("continuous", "dynamic", "static"))]
BatchDelay = Annotated[float, Range(0, 3600)]
SchedulingPolicy = Annotated[str, OneOf(("fcfs", "priority"))]
PrioritySeconds = Annotated[float, Range(0, 1e9)]
MaxPins = Annotated[int, Range(0, 2**16)]
MaxPinnedShare = Annotated[float, Range(0, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The options of one engine. Raises ``InvalidOption`` that names every field with an invalid value."""

    # of weights and KV cache; "auto": the checkpoint's dtype
    dtype: Annotated[str, OneOf(("auto", "float32", "bfloat16", "float16"))] = "auto"
    # applied to weights while they load: int8, int4, int8-weight-only or int4-weight-only
    quantization: Annotated[str, OneOf(QUANTIZATIONS)] | None = None
    # input of products with integer weights of a quantised checkpoint: "auto" (as its scheme says), "int8" or "float"
    activations: Annotated[str, OneOf(ACTIVATIONS)] = "auto"
    kv_cache_dtype: Annotated[str, OneOf(("auto", "int8"))] = "auto"  # "auto" (the model's dtype) or "int8"
    # "cpu" (native kernels) or "torch"; "auto": native kernels where they run
    backend: Annotated[str, OneOf(("auto", "cpu", "torch"))] = "auto"
    threads: Threads | None = None  # None: one per core that this process may use
    revision: Name | None = None  # branch, tag or commit of a hub model
    max_model_len: ContextLength | None = None  # tokens of prompt and output; None: the model's limit, reduced to what fits
    # bytes, or a size such as "4GiB"; None: a quarter of the free memory
    kv_cache_memory: Annotated[int, Range(1, MAX_BYTES)] | Annotated[str, Length(1, 64)] | None = None
    block_size: Annotated[int, Range(1, 4096)] = 16  # tokens per KV block
    max_num_seqs: MaxNumSeqs = 64  # sequences running at a time
    max_num_batched_tokens: MaxNumBatchedTokens = 2048  # tokens per step; longer prompts are computed in chunks
    prefix_caching: bool = True
    max_pins: MaxPins = 64  # prefixes that are pinned at a time
    max_pinned_share: MaxPinnedShare = 0.5  # of the KV blocks that pins may hold
    # "memory:", "sqlite:PATH" ("sqlite:" alone: a file in hasten's cache folder) or "redis://..."; None: no result cache
    result_cache: Name | None = field(default=None, repr=False)  # a URL may hold a password
    result_cache_ttl: Annotated[float, Range(1, 1e9)] = 86_400.0  # seconds that a result is kept
    result_cache_bytes: Annotated[int, Range(1, MAX_BYTES)] | Annotated[str, Length(1, 64)] = "1GiB"  # not of Redis
    result_cache_entries: Annotated[int, Range(1, 10**9)] = 100_000  # not of Redis
    result_cache_eviction: Annotated[str, OneOf(EVICTIONS)] = "lru"  # or "lfu"; not of Redis, which has its own
    result_cache_timeout: Annotated[float, Range(0.001, 60)] = 0.1  # seconds that a request waits for the cache
    # "off", one drafter, or "auto": speculate where it pays and no bit of a logit changes. None: "auto", without a warning.
    speculative_method: Annotated[str, OneOf(("auto", "off", *DRAFTERS))] | None = None
    draft_model: Name | None = None  # a folder, a GGUF file, a hub id or "demo-draft"
    draft_heads: Name | None = None  # Medusa heads or an EAGLE-3 head: a folder, a hub id, "demo-eagle" or "demo-medusa"
    # Of the draft model, the draft heads and the lm_head of exits; "auto": four bits if the model is quantised.
    draft_quantization: Annotated[str, OneOf(("auto", *QUANTIZATIONS))] = "auto"
    # first layers of the model that draft; None: chosen from the exits by cost
    self_draft_layers: Annotated[int, Range(1, 4096)] | None = None
    # maximum tokens of a draft; None: the drafter's own number
    num_speculative_tokens: Annotated[int, Range(1, 256)] | None = None
    exits: Name | None = None  # trained early exits: a folder, a hub id or "demo-exits"
    # How the model writes tool calls and thoughts: a name of vLLM's parsers, "none", or None: by the chat template.
    tool_call_parser: Name | None = None
    reasoning_parser: Name | None = None
    batching: Batching = "continuous"  # or "dynamic", "static"
    max_batch_delay: BatchDelay = 0.05  # seconds that dynamic batching waits for a batch to fill
    scheduling_policy: SchedulingPolicy = "fcfs"  # or "priority"
    priority_seconds: PrioritySeconds = 60.0  # seconds of waiting that equal one level of priority
    max_stop_strings: Annotated[int, Range(0, 4096)] = 16  # of a request
    max_stop_length: Annotated[int, Range(1, 2**16)] = 256  # characters of a stop string
    max_bad_words: Annotated[int, Range(0, 2**16)] = 64  # texts of a request; it may have 16 times as many ``bad_words_ids``
    max_bad_word_length: Annotated[int, Range(1, 2**16)] = 256  # characters of a bad word, or its tokens in ``bad_words_ids``
    max_logit_bias: Annotated[int, Range(0, 2**20)] = 1024  # token ids with a bias of a request
    seed: Seed | None = None  # of the generator that draws a seed for each request without one
    show_progress: bool = False  # show a progress bar while weights load

    def __post_init__(self) -> None:
        check_fields(self, "engine option", InvalidOption, lambda: too_few_tokens(self.max_num_batched_tokens, self.max_num_seqs))
        if self.kv_cache_memory is not None:
            parse_bytes(self.kv_cache_memory, "kv_cache_memory")
        parse_bytes(self.result_cache_bytes, "result_cache_bytes")
        self._check_speculation()

    def _check_speculation(self) -> None:
        """Raise ``InvalidOption`` if a drafter lacks its weights, or if no drafter uses some weights."""
        method = self.resolved_speculative_method
        for name, drafters in (("draft_model", ("draft_model",)), ("draft_heads", ("medusa", "eagle"))):
            value = getattr(self, name)
            if (value is None and method in drafters) or (value is not None and method not in (*drafters, "auto")):
                raise InvalidOption(
                    f"speculative_method {' or '.join(map(repr, drafters))} and the option {name} need each other",
                    got=f"speculative_method={method!r}, {name}={value!r}",
                    remedy=f"Give {name} with speculative_method={drafters[0]!r} or 'auto', or neither",
                )
        exits = self.exits if self.allows_self_drafting else None
        if self.draft_quantization != "auto" and self.draft_model is None and self.draft_heads is None and exits is None:
            raise InvalidOption(
                "draft_quantization has no draft weights to quantise",
                got=f"draft_quantization={self.draft_quantization!r}, no draft_model, no draft_heads, no exits that draft",
                remedy="Give one of them, or leave draft_quantization out",
            )
        if (self.self_draft_layers is not None and not self.allows_self_drafting) or (
            method == "self_speculation" and self.self_draft_layers is None and self.exits is None
        ):
            raise InvalidOption(
                "speculative_method 'self_speculation' needs exits or self_draft_layers, and self_draft_layers needs it",
                got=f"speculative_method={method!r}, self_draft_layers={self.self_draft_layers}, exits={self.exits!r}",
                remedy="Give exits, or self_draft_layers, with speculative_method='self_speculation' or 'auto'",
            )

    @property
    def allows_self_drafting(self) -> bool:
        """Whether the model's first layers may draft, if exits or ``self_draft_layers`` choose them."""
        return self.resolved_speculative_method in ("self_speculation", "auto")

    @property
    def resolved_speculative_method(self) -> str:
        """``speculative_method``; "auto" by default."""
        return self.speculative_method or "auto"

    @property
    def resolved_draft_quantization(self) -> str | None:
        """``draft_quantization`` as a value of ``quantization``; "auto" is four bits if there is one.

        Drafters are bound by memory bandwidth, and four bits lower their acceptance only a little.
        """
        if self.draft_quantization != "auto":
            return self.draft_quantization
        return None if self.quantization is None else self.quantization.replace("int8", "int4")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineOptions:
        """Return the options for named values.

        Raises ``InvalidOption`` for an unknown name, with the right one.
        """
        if not isinstance(values, Mapping):
            raise InvalidOption("engine options are not named values", got=show(values), allowed="a mapping from names to values")
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                remedy = remedy_for_unknown(name, names, RENAMED_ENGINE_OPTIONS)
                raise InvalidOption("unknown engine option", got=show(name), remedy=remedy)
        return cls(**values)


def too_few_tokens(max_num_batched_tokens: int, max_num_seqs: int) -> Iterator[Fault]:
    """Yield the fault of a step that has no token for every running sequence."""
    if max_num_batched_tokens < max_num_seqs:
        yield Fault(
            "max_num_batched_tokens",
            f"from max_num_seqs={max_num_seqs}",
            "Raise the first or lower the second: every running sequence needs one token per step",
        )
