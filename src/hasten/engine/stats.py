"""Counters of an engine since its start."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.plan import StepPlan
from hasten.core.result import StepResult


@dataclass(slots=True)
class EngineStats:
    num_steps: int = 0
    num_computed_tokens: int = 0  # through the model, prompts and answers, recomputed ones included
    num_sampled_rows: int = 0
    num_drafted_tokens: int = 0  # verified
    num_accepted_tokens: int = 0  # of these, the ones that became output

    def count(self, plan: StepPlan, result: StepResult) -> None:
        self.num_steps += 1
        self.num_computed_tokens += plan.num_tokens
        self.num_sampled_rows += len(plan.sampled_ids)
        self.num_drafted_tokens += sum(row.num_logits - 1 for row in plan.rows if row.num_logits > 1)
        self.num_accepted_tokens += sum(len(continuation.token_ids) - 1 for continuation in result.continuations)
