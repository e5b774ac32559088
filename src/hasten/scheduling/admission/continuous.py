"""Continuous batching (Orca, Yu et al., OSDI 2022): a request joins at any step, as soon as there is room."""

from __future__ import annotations

from hasten.scheduling.config import SchedulerConfig


class Continuous:
    def __init__(self, config: SchedulerConfig) -> None: ...

    def opens_at(self, num_running: int, num_waiting: int, oldest_arrival: float) -> float | None:
        return oldest_arrival
