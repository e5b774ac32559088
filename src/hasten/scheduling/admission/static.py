"""Static batching: what waits when the engine is idle forms a batch of up to all seats; nobody joins before all of it is done."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class Static:
    """The batch is fixed when it forms. Its members join as the token budget admits them, and again if they are preempted."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._size = config.max_num_seqs
        self._batch: frozenset[ScheduledRequest] = frozenset()

    def may_join(self, waiting: Sequence[ScheduledRequest], num_running: int, now: float) -> Sequence[ScheduledRequest]:
        joining = [entry for entry in waiting if entry in self._batch]
        if not joining and num_running == 0 and self.next_admission_time(waiting) <= now:
            joining = self._first(waiting)
            self._batch = frozenset(joining)
        return joining

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        return min(entry.request.arrival for entry in waiting)

    def _first(self, waiting: Sequence[ScheduledRequest]) -> list[ScheduledRequest]:
        """As many as there are seats for."""
        batch: list[ScheduledRequest] = []
        seats = self._size
        for entry in waiting:
            if entry.max_sequences > seats:
                break
            seats -= entry.max_sequences
            batch.append(entry)
        return batch
