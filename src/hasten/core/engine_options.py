"""The engine's options: one list for Python, the command line and configuration files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidOption, nearest

MODEL_FREE = ("prompt_lookup", "suffix")  # drafters that need nothing but the text
DRAFTERS = (*MODEL_FREE, "draft_model", "medusa", "eagle", "self_speculation")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4", "int8-weight-only", "int4-weight-only")
KV_CACHE_DTYPES = ("auto", "int8")
BACKENDS = ("auto", "cpu", "torch")
_CHOICES = {
    "dtype": DTYPES,
    "kv_cache_dtype": KV_CACHE_DTYPES,
    "backend": BACKENDS,
    "quantization": QUANTIZATIONS,
    "draft_quantization": ("auto", *QUANTIZATIONS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Raises ``InvalidOption`` for values out of range."""

    dtype: str = "auto"  # of weights and KV; "auto" takes the checkpoint's
    quantization: str | None = None  # of weights, while they are loaded: int8, int4, int8-weight-only or int4-weight-only
    kv_cache_dtype: str = "auto"  # of the KV cache; "auto" takes the model's, or int8
    backend: str = "auto"  # cpu (native kernels) or torch; "auto" takes the native ones where they run
    threads: int | None = None  # None: one per core that this process may use
    revision: str | None = None  # branch, tag or commit of a hub model
    max_model_len: int | None = None  # tokens, prompt and answer; None: the model's, reduced to what fits
    kv_cache_memory: int | str | None = None  # bytes or a size such as "4GiB"; None: half of what is free
    block_size: int = 16  # tokens per KV block
    max_num_seqs: int = 64  # sequences running at a time
    max_num_batched_tokens: int = 2048  # tokens per step; longer prompts are computed in chunks
    prefix_caching: bool = True
    # Guess tokens and verify several a step: auto, off, or one drafter alone. auto takes whatever pays, where outputs stay the
    # same bits.
    speculative_method: str = "auto"
    draft_model: str | None = None  # a small model that guesses: a folder, a hub id or "demo-draft"
    draft_heads: str | None = None  # Medusa heads or an EAGLE-3 head that guess: a folder, a hub id, "demo-eagle" or "demo-medusa"
    # Of their weights, and of the vocabulary that exits guess from, as quantize; "auto": four bits where the model is quantised.
    draft_quantization: str = "auto"
    self_draft_layers: int | None = None  # of the model itself, that guess; None: those before the exit that should pay best
    num_speculative_tokens: int | None = None  # of a guess, at most; None: the drafter's own number
    exits: str | None = None  # trained exits, for requests whose tokens may leave early: a folder, a hub id or "demo-exits"
    batching: str = "continuous"  # or dynamic, static
    max_batch_delay: float = 0.05  # seconds that dynamic batching waits for a batch to fill
    scheduling_policy: str = "fcfs"  # or priority
    priority_seconds: float = 60.0  # of waiting that one level of priority is worth
    seed: int | None = None  # of the seeds that requests without one get
    show_progress: bool = False  # a progress bar while weights load

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            chosen = getattr(self, name)
            if chosen not in allowed and (name, chosen) != ("quantization", None):
                raise InvalidOption(f"unknown {name}", got=repr(chosen), remedy=nearest(str(chosen), allowed))
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "num_speculative_tokens", "self_draft_layers"):
            value = getattr(self, name)
            optional = name in ("num_speculative_tokens", "self_draft_layers") and value is None
            if not optional and (type(value) is not int or value < 1):
                raise InvalidOption(f"{name} is out of range", got=repr(value), allowed="a whole number from 1")
        self._check_speculation()

    def _check_speculation(self) -> None:
        """Each drafter has what it guesses with, and nothing is given that nobody uses."""
        allowed = ("auto", "off", *DRAFTERS)
        if self.speculative_method not in allowed:
            raise InvalidOption(
                "unknown speculative_method",
                got=repr(self.speculative_method),
                remedy=nearest(str(self.speculative_method), allowed),
            )
        for name, drafters in (("draft_model", ("draft_model",)), ("draft_heads", ("medusa", "eagle"))):
            given = getattr(self, name)
            if (given is None and self.speculative_method in drafters) or (
                given is not None and self.speculative_method not in (*drafters, "auto")
            ):
                raise InvalidOption(
                    f"speculation by {' or '.join(drafters)} and the option {name} go together",
                    got=f"speculative_method={self.speculative_method!r}, {name}={given!r}",
                    remedy=f"Give {name} with speculative_method={drafters[0]!r} or 'auto', or neither",
                )
        own_exits = self.exits if self.allows_self_drafting else None
        if self.draft_quantization != "auto" and self.draft_model is None and self.draft_heads is None and own_exits is None:
            raise InvalidOption(
                "there is nothing to quantise for guesses",
                got=f"draft_quantization={self.draft_quantization!r}, no draft_model, no draft_heads, no exits that guess",
                remedy="Give one of them, or leave draft_quantization out",
            )
        if (self.self_draft_layers is not None and not self.allows_self_drafting) or (
            self.speculative_method == "self_speculation" and self.self_draft_layers is None and self.exits is None
        ):
            raise InvalidOption(
                "speculation by the model's own first layers, and what says which of them, go together",
                got=f"speculative_method={self.speculative_method!r}, self_draft_layers={self.self_draft_layers}, exits={self.exits!r}",
                remedy="Give exits, or self_draft_layers, with speculative_method='self_speculation' or 'auto'",
            )

    @property
    def allows_self_drafting(self) -> bool:
        """Whether the model's own first layers may guess, where exits or ``self_draft_layers`` say which."""
        return self.speculative_method in ("self_speculation", "auto")

    @property
    def draft_format(self) -> str | None:
        """What ``draft_quantization`` comes to, as ``quantization``.

        Who guesses waits for memory, and with half of the bytes is right nearly as often.
        """
        if self.draft_quantization != "auto":
            return self.draft_quantization
        return None if self.quantization is None else self.quantization.replace("int8", "int4")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineOptions:
        """From named values. Raises ``InvalidOption`` for an unknown name, with the nearest known one."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise InvalidOption("unknown engine option", got=repr(name), remedy=nearest(name, names))
        return cls(**values)
