"""A plan in the making: rows by request, so that a request that gets preempted takes its rows and copies along."""

from __future__ import annotations

from hasten.core.plan import BlockCopy, RowPlan, StepPlan
from hasten.scheduling.sequence import ScheduledRequest


class PlanBuilder:
    def __init__(self, budget: int) -> None:
        self.budget = budget  # tokens that the step may still take
        self._rows: dict[ScheduledRequest, list[RowPlan]] = {}
        self._copies: dict[ScheduledRequest, list[BlockCopy]] = {}

    def add(self, entry: ScheduledRequest, row: RowPlan, copies: list[BlockCopy]) -> None:
        self._rows.setdefault(entry, []).append(row)
        self._copies.setdefault(entry, []).extend(copies)
        self.budget -= len(row.token_ids)

    def drop(self, entry: ScheduledRequest) -> None:
        self.budget += sum(len(row.token_ids) for row in self._rows.pop(entry, ()))
        self._copies.pop(entry, None)

    def build(self) -> StepPlan:
        rows = tuple(row for rows in self._rows.values() for row in rows)
        return StepPlan(rows, tuple(copy for copies in self._copies.values() for copy in copies))
