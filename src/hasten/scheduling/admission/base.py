"""The question that every batching mode answers differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import Entry


class Admission(Protocol):
    def __init__(self, config: SchedulerConfig) -> None: ...

    def may_join(self, waiting: Sequence[Entry], num_running: int, now: float) -> Sequence[Entry]:
        """Those of ``waiting`` that may join in this step, in the same order. Asked once per step, while something waits."""
        ...

    def opens_at(self, waiting: Sequence[Entry]) -> float:
        """When an idle engine lets the first of ``waiting`` join, if nobody else comes. Mutates nothing."""
        ...
