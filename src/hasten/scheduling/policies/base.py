"""A total order over requests: the first is served first, the last is preempted first."""

from __future__ import annotations

from typing import Protocol

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class SchedulingPolicy(Protocol):
    def __init__(self, config: SchedulerConfig) -> None: ...

    def rank(self, entry: ScheduledRequest) -> tuple[float, int]:
        """Smaller is sooner. It never changes while the request lives, which is what rules out livelock."""
        ...
