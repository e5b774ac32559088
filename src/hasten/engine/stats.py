"""``EngineStats``: counters of an engine since its start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.core.output import Delta
from hasten.core.plan import StepPlan
from hasten.core.result import StepResult
from hasten.engine.open_requests import OpenRequests
from hasten.engine.request_totals import RequestTotals

if TYPE_CHECKING:
    from hasten.scheduling.sequence import ScheduledRequest


@dataclass(slots=True)
class EngineStats:
    requests: RequestTotals = field(default_factory=RequestTotals)
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    num_steps: int = 0
    num_computed_tokens: int = 0  # prompt, output and recomputed tokens
    num_sampled_rows: int = 0
    num_drafts: int = 0  # verified drafts
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    # At index i: drafts of at least i + 1 tokens, and those of which i + 1 tokens or more were accepted.
    drafts_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    plain_step: Callable[[int], float] | None = None  # measured seconds of a step of so many tokens; None: not measured
    # Over decode-only steps: their time with drafting, and the time of plain steps for as many output tokens.
    decoding_seconds: float = 0.0
    plain_seconds: float = 0.0

    def add(self, scheduled: ScheduledRequest) -> None:
        """Count a request that waits from now on."""
        self.requests.num_added += 1
        self.open_requests.add(scheduled)

    def count_deltas(self, deltas: Sequence[Delta], now: float) -> None:
        """Count the tokens of deltas, and the requests that end with them."""
        for delta in deltas:
            if delta.output is not None:
                self.requests.count(delta.output)
        self.open_requests.count(deltas, now)

    def count(self, plan: StepPlan, result: StepResult) -> None:
        num_tokens = plan.num_tokens
        self.num_steps += 1
        self.num_computed_tokens += num_tokens
        self.open_requests.histograms.step.add(num_tokens)
        self.num_sampled_rows += len(plan.sampled_sequence_ids)
        for outcome in result.draft_outcomes:
            self.num_drafts += 1
            self.num_drafted_tokens += outcome.num_drafted
            self.num_accepted_tokens += outcome.num_accepted
            new_positions = [0] * (outcome.depth - len(self.drafts_by_position))
            self.drafts_by_position += new_positions
            self.accepted_by_position += new_positions
            for position in range(outcome.depth):
                self.drafts_by_position[position] += 1
                self.accepted_by_position[position] += position < outcome.num_accepted

    def count_time(self, plan: StepPlan, result: StepResult, seconds: float) -> None:
        """Count the time of one step, drafting for the next step included."""
        if self.plain_step is not None and plan.decode_only:
            num_tokens = sum(len(continuation.token_ids) for continuation in result.continuations)
            self.decoding_seconds += seconds
            self.plain_seconds += self.plain_step(len(plan.rows)) * num_tokens / len(plan.rows)

    @property
    def speed_up(self) -> float | None:
        """The speed-up of speculative over plain decoding; None if no plain step was measured."""
        return self.plain_seconds / self.decoding_seconds if self.decoding_seconds else None

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """At index i: the fraction of drafts of at least i + 1 tokens of which as many were accepted."""
        return tuple(a / n for a, n in zip(self.accepted_by_position, self.drafts_by_position, strict=True))

    @property
    def mean_accepted_length(self) -> float | None:
        """Output tokens per verified draft, the token that every step yields included."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None
