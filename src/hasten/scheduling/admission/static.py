"""Static batching: whatever waits when the engine is idle forms a batch, and nobody joins before all of it is done."""

from __future__ import annotations

from hasten.scheduling.config import SchedulerConfig


class Static:
    def __init__(self, config: SchedulerConfig) -> None: ...

    def opens_at(self, num_running: int, num_waiting: int, oldest_arrival: float) -> float | None:
        return None if num_running else oldest_arrival
