"""The scheduler's settings, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.core.errors import InvalidOption


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    max_num_seqs: int = 64  # sequences running at a time
    max_num_batched_tokens: int = 2048  # the token budget of a step; a longer prompt is computed in chunks
    max_model_len: int = 4096  # tokens of a sequence, prompt and answer
    batching: str = "continuous"  # or "dynamic", "static"; see scheduling/admission/
    max_batch_delay: float = 0.05  # seconds that dynamic batching waits for a batch to fill
    scheduling_policy: str = "fcfs"  # or "priority"; see scheduling/policies/
    priority_seconds: float = 60.0  # one level of priority is worth this long a wait, so nobody starves
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} is out of range", got=getattr(self, name), allowed="from 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidOption(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}",
                remedy="Every running sequence needs one token a step: raise the first or lower the second",
            )
        for name in ("max_batch_delay", "priority_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidOption(f"{name} is out of range", got=getattr(self, name), allowed="from 0, finite (seconds)")
