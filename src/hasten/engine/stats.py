"""Counters of an engine since its start."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.plan import StepPlan


@dataclass(slots=True)
class EngineStats:
    num_steps: int = 0
    num_computed_tokens: int = 0  # through the model, prompts and answers, recomputed ones included
    num_sampled_rows: int = 0

    def count(self, plan: StepPlan) -> None:
        self.num_steps += 1
        self.num_computed_tokens += plan.num_tokens
        self.num_sampled_rows += len(plan.sampled_ids)
