"""Continuous batching (Orca, Yu et al., OSDI 2022): a request joins at any step, as soon as there is room."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import Entry


class Continuous:
    def __init__(self, config: SchedulerConfig) -> None: ...

    def may_join(self, waiting: Sequence[Entry], num_running: int, now: float) -> Sequence[Entry]:
        return waiting

    def opens_at(self, waiting: Sequence[Entry]) -> float:
        return waiting[0].request.arrival
