"""The engine's options: one list for Python, the command line and configuration files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import InvalidOption, nearest
from hasten.decoding.drafters import DRAFTERS
from hasten.scheduling.config import SchedulerConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4", "int8-weight-only", "int4-weight-only")
KV_DTYPES = ("auto", "int8")
BACKENDS = ("auto", "cpu", "torch")
_CHOICES = {
    "dtype": DTYPES,
    "kv_dtype": KV_DTYPES,
    "backend": BACKENDS,
    "quantize": QUANTIZATIONS,
    "draft_quantize": ("auto", *QUANTIZATIONS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Raises ``InvalidOption`` for values out of range."""

    dtype: str = "auto"  # of weights and KV; "auto" takes the checkpoint's
    quantize: str | None = None  # of weights, while they are loaded: int8, int4, int8-weight-only or int4-weight-only
    kv_dtype: str = "auto"  # of the KV cache; "auto" takes the model's, or int8
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
    speculation: str = "auto"
    draft_model: str | None = None  # a small model that guesses: a folder, a hub id or "demo-draft"
    draft_heads: str | None = None  # Medusa heads or an EAGLE-3 head that guess: a folder, a hub id, "demo-eagle" or "demo-medusa"
    # Of their weights, and of the vocabulary that exits guess from, as quantize; "auto": four bits where the model is quantised.
    draft_quantize: str = "auto"
    draft_layers: int | None = None  # of the model itself, that guess; None: those before the exit that should pay best
    num_draft_tokens: int | None = None  # of a guess, at most; None: the drafter's own number
    exits: str | None = None  # trained exits, for requests whose tokens may leave early: a folder, a hub id or "demo-exits"
    batching: str = "continuous"  # or dynamic, static
    batch_wait: float = 0.05  # seconds that dynamic batching waits for a batch to fill
    ordering: str = "fcfs"  # or priority
    priority_seconds: float = 60.0  # of waiting that one level of priority is worth
    seed: int | None = None  # of the seeds that requests without one get
    show_progress: bool = False  # a progress bar while weights load

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            chosen = getattr(self, name)
            if chosen not in allowed and (name, chosen) != ("quantize", None):
                raise InvalidOption(f"unknown {name}", got=repr(chosen), remedy=nearest(str(chosen), allowed))
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "num_draft_tokens", "draft_layers"):
            value = getattr(self, name)
            optional = name in ("num_draft_tokens", "draft_layers") and value is None
            if not optional and (type(value) is not int or value < 1):
                raise InvalidOption(f"{name} is out of range", got=repr(value), allowed="a whole number from 1")
        self._check_speculation()

    def _check_speculation(self) -> None:
        """Each drafter has what it guesses with, and nothing is given that nobody uses."""
        allowed = ("auto", "off", *DRAFTERS)
        if self.speculation not in allowed:
            raise InvalidOption("unknown speculation", got=repr(self.speculation), remedy=nearest(str(self.speculation), allowed))
        for name, drafters in (("draft_model", ("draft_model",)), ("draft_heads", ("medusa", "eagle"))):
            given = getattr(self, name)
            if (given is None and self.speculation in drafters) or (
                given is not None and self.speculation not in (*drafters, "auto")
            ):
                raise InvalidOption(
                    f"speculation by {' or '.join(drafters)} and the option {name} go together",
                    got=f"speculation={self.speculation!r}, {name}={given!r}",
                    remedy=f"Give {name} with speculation={drafters[0]!r} or 'auto', or neither",
                )
        own_exits = self.exits if self.first_layers_guess else None
        if self.draft_quantize != "auto" and self.draft_model is None and self.draft_heads is None and own_exits is None:
            raise InvalidOption(
                "there is nothing to quantise for guesses",
                got=f"draft_quantize={self.draft_quantize!r}, no draft_model, no draft_heads, no exits that guess",
                remedy="Give one of them, or leave draft_quantize out",
            )
        if (self.draft_layers is not None and not self.first_layers_guess) or (
            self.speculation == "self_speculation" and self.draft_layers is None and self.exits is None
        ):
            raise InvalidOption(
                "speculation by the model's own first layers, and what says which of them, go together",
                got=f"speculation={self.speculation!r}, draft_layers={self.draft_layers}, exits={self.exits!r}",
                remedy="Give exits, or draft_layers, with speculation='self_speculation' or 'auto'",
            )

    @property
    def first_layers_guess(self) -> bool:
        """Whether the model's own first layers may guess, where exits or ``draft_layers`` say which."""
        return self.speculation in ("self_speculation", "auto")

    @property
    def draft_format(self) -> str | None:
        """What ``draft_quantize`` comes to, as ``quantize``.

        Who guesses waits for memory, and with half of the bytes is right nearly as often.
        """
        if self.draft_quantize != "auto":
            return self.draft_quantize
        return None if self.quantize is None else self.quantize.replace("int8", "int4")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineOptions:
        """From named values. Raises ``InvalidOption`` for an unknown name, with the nearest known one."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise InvalidOption("unknown engine option", got=repr(name), remedy=nearest(name, names))
        return cls(**values)

    def scheduler(self, max_model_len: int) -> SchedulerConfig:
        names = {f.name for f in dataclasses.fields(SchedulerConfig)} - {"max_model_len"}
        return SchedulerConfig(max_model_len=max_model_len, **{name: getattr(self, name) for name in names})
