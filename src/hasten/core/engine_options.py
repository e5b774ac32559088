"""``EngineOptions``: the engine's options, shared by Python, the command line and configuration files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidOption, nearest
from hasten.core.renamed import RENAMED_ENGINE_OPTIONS, remedy_for_unknown

MODEL_FREE = ("prompt_lookup", "suffix")  # drafters that read only the sequence's tokens
DRAFTERS = (*MODEL_FREE, "draft_model", "medusa", "eagle", "self_speculation")
QUANTIZATIONS = ("int8", "int4", "int8-weight-only", "int4-weight-only")
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "kv_cache_dtype": ("auto", "int8"),
    "backend": ("auto", "cpu", "torch"),
    "quantization": (None, *QUANTIZATIONS),
    "draft_quantization": ("auto", *QUANTIZATIONS),
    "speculative_method": (None, "auto", "off", *DRAFTERS),
}
_POSITIVE = ("block_size", "max_num_seqs", "max_num_batched_tokens")
_POSITIVE_OR_NONE = ("num_speculative_tokens", "self_draft_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The options of one engine. Raises ``InvalidOption`` for values out of range."""

    dtype: str = "auto"  # of weights and KV cache; "auto": the checkpoint's dtype
    quantization: str | None = None  # applied to weights while they load: int8, int4, int8-weight-only or int4-weight-only
    kv_cache_dtype: str = "auto"  # "auto" (the model's dtype) or "int8"
    backend: str = "auto"  # "cpu" (native kernels) or "torch"; "auto": native kernels where they run
    threads: int | None = None  # None: one per core that this process may use
    revision: str | None = None  # branch, tag or commit of a hub model
    max_model_len: int | None = None  # tokens of prompt and output; None: the model's limit, reduced to what fits
    kv_cache_memory: int | str | None = None  # bytes, or a size such as "4GiB"; None: a quarter of the free memory
    block_size: int = 16  # tokens per KV block
    max_num_seqs: int = 64  # sequences running at a time
    max_num_batched_tokens: int = 2048  # tokens per step; longer prompts are computed in chunks
    prefix_caching: bool = True
    # "off", one drafter, or "auto": speculate where it pays and no bit of a logit changes. None: "auto", without a warning.
    speculative_method: str | None = None
    draft_model: str | None = None  # a folder, a hub id or "demo-draft"
    draft_heads: str | None = None  # Medusa heads or an EAGLE-3 head: a folder, a hub id, "demo-eagle" or "demo-medusa"
    # Of the draft model, the draft heads and the lm_head of exits; "auto": four bits if the model is quantised.
    draft_quantization: str = "auto"
    self_draft_layers: int | None = None  # first layers of the model that draft; None: chosen from the exits by cost
    num_speculative_tokens: int | None = None  # maximum tokens of a draft; None: the drafter's own number
    exits: str | None = None  # trained early exits: a folder, a hub id or "demo-exits"
    batching: str = "continuous"  # or "dynamic", "static"
    max_batch_delay: float = 0.05  # seconds that dynamic batching waits for a batch to fill
    scheduling_policy: str = "fcfs"  # or "priority"
    priority_seconds: float = 60.0  # seconds of waiting that equal one level of priority
    seed: int | None = None  # of the generator that draws a seed for each request without one
    show_progress: bool = False  # show a progress bar while weights load

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidOption(f"unknown {name}", got=repr(value), remedy=nearest(str(value), filter(None, allowed)))
        for name in (*_POSITIVE, *_POSITIVE_OR_NONE):
            value = getattr(self, name)
            unset = value is None and name in _POSITIVE_OR_NONE
            if not unset and (type(value) is not int or value < 1):
                raise InvalidOption(f"{name} is out of range", got=repr(value), allowed="a whole number from 1")
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
        """``draft_quantization`` as a value of ``quantization``; "auto" is four bits for a quantised model.

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
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                remedy = remedy_for_unknown(name, names, RENAMED_ENGINE_OPTIONS)
                raise InvalidOption("unknown engine option", got=repr(name), remedy=remedy)
        return cls(**values)
