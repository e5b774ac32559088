"""Counters of an engine since its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.core.plan import StepPlan
from hasten.core.result import DraftOutcome, StepResult


@dataclass(slots=True)
class EngineStats:
    num_steps: int = 0
    num_computed_tokens: int = 0  # through the model, prompts and answers, recomputed ones included
    num_sampled_rows: int = 0
    num_drafts: int = 0  # verified
    num_drafted_tokens: int = 0  # in them
    num_accepted_tokens: int = 0  # of these, the ones that became output
    # At index i: drafts that guessed i + 1 tokens ahead or more, and those of which that many were accepted.
    drafts_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    plain_step: Callable[[int], float] | None = None  # seconds that a step of so many tokens takes, as measured; None: it was not
    # Of steps that only decode: what they took with all that they were spared, and what plain steps for as many tokens would.
    decoding_seconds: float = 0.0
    plain_seconds: float = 0.0

    def count(self, plan: StepPlan, result: StepResult) -> None:
        self.num_steps += 1
        self.num_computed_tokens += plan.num_tokens
        self.num_sampled_rows += len(plan.sampled_sequence_ids)
        for outcome in result.draft_outcomes:
            self._count_draft(outcome)

    def count_time(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """``seconds``: of the whole step, guesses for the next one included."""
        if self.plain_step is not None and plan.decode_only:
            gained = sum(len(continuation.token_ids) for continuation in result.continuations)
            self.decoding_seconds += seconds
            self.plain_seconds += self.plain_step(len(plan.rows)) * gained / len(plan.rows)

    @property
    def speed_up(self) -> float | None:
        """How many times as fast as plain decoding the guesses made it; None where no plain step was measured."""
        return self.plain_seconds / self.decoding_seconds if self.decoding_seconds else None

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """The share of drafts that reach so far of which as many tokens were accepted."""
        return tuple(a / n for a, n in zip(self.accepted_by_position, self.drafts_by_position, strict=True))

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens that a verified draft gave, the one that the step gives anyway included."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None

    def _count_draft(self, outcome: DraftOutcome) -> None:
        self.num_drafts += 1
        self.num_drafted_tokens += outcome.num_drafted
        self.num_accepted_tokens += outcome.num_accepted
        missing = outcome.depth - len(self.drafts_by_position)
        self.drafts_by_position += [0] * missing
        self.accepted_by_position += [0] * missing
        for position in range(outcome.depth):
            self.drafts_by_position[position] += 1
            self.accepted_by_position[position] += position < outcome.num_accepted
