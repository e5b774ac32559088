"""First come, first served."""

from __future__ import annotations

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class Fcfs:
    def __init__(self, config: SchedulerConfig) -> None: ...

    def rank(self, entry: ScheduledRequest) -> tuple[float, int]:
        return (0.0, entry.order)
