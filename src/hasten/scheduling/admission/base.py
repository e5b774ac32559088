"""The question that every batching mode answers differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class Admission(Protocol):
    def __init__(self, config: SchedulerConfig) -> None: ...

    def may_join(self, waiting: Sequence[ScheduledRequest], num_running: int, now: float) -> Sequence[ScheduledRequest]:
        """Those of ``waiting`` that may join in this step, in the same order. Asked once per step, while something waits."""
        ...

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        """When an idle engine lets the first of ``waiting`` join, if nobody else comes. Mutates nothing."""
        ...
