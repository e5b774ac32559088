"""Continuous batching (Orca, Yu et al., OSDI 2022): a request joins at any step, as soon as there is room."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


class Continuous:
    def __init__(self, config: SchedulerConfig) -> None: ...

    def may_join(self, waiting: Sequence[ScheduledRequest], num_running: int, now: float) -> Sequence[ScheduledRequest]:
        return waiting

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        return waiting[0].request.arrival
