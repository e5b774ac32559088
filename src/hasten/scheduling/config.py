"""``SchedulerConfig``: the scheduler's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hasten.core.errors import InvalidOption, nearest

BATCHING_MODES = ("continuous", "dynamic", "static")
SCHEDULING_POLICIES = ("fcfs", "priority")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Raises ``InvalidOption`` for invalid values."""

    max_num_seqs: int = 64  # running sequences
    max_num_batched_tokens: int = 2048  # token budget of a step; longer prompts are computed in chunks
    max_model_len: int = 4096  # tokens of a sequence, prompt and output
    batching: str = "continuous"
    max_batch_delay: float = 0.05  # "dynamic" only: seconds to wait for a full batch
    scheduling_policy: str = "fcfs"
    priority_seconds: float = 60.0  # "priority" only: seconds of waiting that offset one level of priority
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("batching", BATCHING_MODES), ("scheduling_policy", SCHEDULING_POLICIES)):
            choice = getattr(self, name)
            if choice not in choices:
                raise InvalidOption(f"unknown {name}", got=repr(choice), remedy=nearest(choice, choices))
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} is out of range", got=getattr(self, name), allowed="from 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidOption(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than max_num_seqs={self.max_num_seqs}",
                remedy="Raise the first or lower the second: every running sequence needs one token per step",
            )
        for name in ("max_batch_delay", "priority_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidOption(f"{name} is out of range", got=getattr(self, name), allowed="from 0, finite (seconds)")
