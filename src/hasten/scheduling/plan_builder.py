"""``PlanBuilder``: rows of a step plan, grouped by request so that a preemption can remove them."""

from __future__ import annotations

from hasten.core.plan import BlockCopy, RowPlan, StepPlan
from hasten.scheduling.sequence import ScheduledRequest


class PlanBuilder:
    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget  # tokens left in the step
        self._rows: dict[ScheduledRequest, list[tuple[RowPlan, list[BlockCopy]]]] = {}

    def add(self, scheduled: ScheduledRequest, row: RowPlan, copies: list[BlockCopy]) -> None:
        self._rows.setdefault(scheduled, []).append((row, copies))
        self.token_budget -= len(row.token_ids)

    def drop(self, scheduled: ScheduledRequest) -> None:
        self.token_budget += sum(len(row.token_ids) for row, _ in self._rows.pop(scheduled, ()))

    def build(self) -> StepPlan:
        rows = [row for rows in self._rows.values() for row in rows]
        return StepPlan(tuple(row for row, _ in rows), tuple(copy for _, copies in rows for copy in copies))
