"""Dynamic batching, as model servers do it: static batches, but an idle engine waits a moment for the batch to fill."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.scheduling.admission.static import Static
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import Entry


class Dynamic(Static):
    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._wait = config.batch_wait

    def opens_at(self, waiting: Sequence[Entry]) -> float:
        full = sum(entry.num_seats for entry in waiting) >= self._size
        return super().opens_at(waiting) + (0.0 if full else self._wait)
