"""Dynamic batching, as model servers do it: static batches, but an idle engine waits a moment for the batch to fill."""

from __future__ import annotations

from hasten.scheduling.config import SchedulerConfig


class Dynamic:
    def __init__(self, config: SchedulerConfig) -> None:
        self._size, self._wait = config.max_num_seqs, config.batch_wait

    def opens_at(self, num_running: int, num_waiting: int, oldest_arrival: float) -> float | None:
        if num_running:
            return None
        return oldest_arrival if num_waiting >= self._size else oldest_arrival + self._wait
