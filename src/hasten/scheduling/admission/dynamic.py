"""Dynamic batching, as model servers do it: static batches, but an idle engine waits a moment for the batch to fill."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.scheduling.admission.static import Static
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class Dynamic(Static):
    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._wait = config.max_batch_delay

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        full = sum(entry.max_sequences for entry in waiting) >= self._size
        return super().next_admission_time(waiting) + (0.0 if full else self._wait)
