"""By priority with ageing: one level is worth ``priority_seconds`` of waiting, so a low priority waits but never starves.

Ageing would compare ``priority - waited / seconds`` of two requests at the same moment; the moment cancels out, and what is
left is a rank that never changes.
"""

from __future__ import annotations

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class Priority:
    def __init__(self, config: SchedulerConfig) -> None:
        self._seconds = config.priority_seconds

    def rank(self, entry: ScheduledRequest) -> tuple[float, int]:
        return (entry.request.arrival + entry.request.priority * self._seconds, entry.order)
