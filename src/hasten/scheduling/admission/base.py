"""The question that every batching mode answers differently."""

from __future__ import annotations

from typing import Protocol

from hasten.scheduling.config import SchedulerConfig


class Admission(Protocol):
    def __init__(self, config: SchedulerConfig) -> None: ...

    def opens_at(self, num_running: int, num_waiting: int, oldest_arrival: float) -> float | None:
        """The time from which waiting requests may join; None: not before the running ones are done.

        Asked only while something waits. Within one step the door stays as it was when the step began. Mutates nothing.
        """
        ...
