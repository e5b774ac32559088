"""``SchedulerConfig``: the scheduler's settings."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.check_fields import check_fields
from hasten.core.engine_options import (
    BatchDelay,
    Batching,
    ContextLength,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    PrioritySeconds,
    SchedulingPolicy,
    too_few_tokens,
)
from hasten.core.errors import InvalidOption


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Raises ``InvalidOption`` for invalid values."""

    max_num_seqs: MaxNumSeqs = 64  # running sequences
    max_num_batched_tokens: MaxNumBatchedTokens = 2048  # token budget of a step; longer prompts are computed in chunks
    max_model_len: ContextLength = 4096  # tokens of a sequence, prompt and output
    batching: Batching = "continuous"
    max_batch_delay: BatchDelay = 0.05  # "dynamic" only: seconds to wait for a full batch
    scheduling_policy: SchedulingPolicy = "fcfs"
    priority_seconds: PrioritySeconds = 60.0  # "priority" only: seconds of waiting that offset one level of priority
    prefix_caching: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self, "scheduler setting", InvalidOption, lambda: too_few_tokens(self.max_num_batched_tokens, self.max_num_seqs)
        )
