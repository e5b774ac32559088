"""Admission: the order of requests, and the steps at which waiting requests may join the running ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hasten.core.request import Request
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.sequence import ScheduledRequest


def service_rank(config: SchedulerConfig, request: Request, arrival_number: int) -> tuple[float, int]:
    """Return the request's rank: the smallest is served first, the largest is preempted first.

    "priority" has ageing: one level is worth ``priority_seconds`` of waiting, so no request starves. A comparison of
    ``priority - waited / priority_seconds`` at any moment gives this order. Ranks are constant, which rules out livelock.
    """
    if config.scheduling_policy == "fcfs":
        return (0.0, arrival_number)
    return (request.arrival + request.priority * config.priority_seconds, arrival_number)


class Admission(Protocol):
    """A batching mode."""

    def admissible(self, waiting: Sequence[ScheduledRequest], num_running: int, now: float) -> Sequence[ScheduledRequest]:
        """Return the waiting requests that may join now, in order. Called once per step if requests wait."""
        ...

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        """Return when an idle engine admits a request, if no other one arrives. Mutates nothing."""
        ...


class Continuous:
    """Continuous batching (Orca, Yu et al., OSDI 2022): a request may join at any step."""

    def admissible(self, waiting: Sequence[ScheduledRequest], num_running: int, now: float) -> Sequence[ScheduledRequest]:
        return waiting

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        return waiting[0].request.arrival


class Static:
    """Static batching: an idle engine forms a batch, and no other request joins before the batch ends.

    Requests of the batch join as the token budget permits, and again after a preemption. An idle engine waits ``max_batch_delay``
    seconds for a full batch; this is dynamic batching, as in model servers.
    """

    def __init__(self, max_num_seqs: int, max_batch_delay: float = 0.0) -> None:
        self._max_num_seqs, self._max_batch_delay = max_num_seqs, max_batch_delay
        self._batch: frozenset[ScheduledRequest] = frozenset()

    def admissible(self, waiting: Sequence[ScheduledRequest], num_running: int, now: float) -> Sequence[ScheduledRequest]:
        joining = [scheduled for scheduled in waiting if scheduled in self._batch]
        if not joining and num_running == 0 and self.next_admission_time(waiting) <= now:
            num_free = self._max_num_seqs
            for scheduled in waiting:
                num_free -= scheduled.max_sequences
                if num_free < 0:
                    break
                joining.append(scheduled)
            self._batch = frozenset(joining)
        return joining

    def next_admission_time(self, waiting: Sequence[ScheduledRequest]) -> float:
        is_full = sum(scheduled.max_sequences for scheduled in waiting) >= self._max_num_seqs
        return min(scheduled.request.arrival for scheduled in waiting) + (0.0 if is_full else self._max_batch_delay)


def admission(config: SchedulerConfig) -> Admission:
    """Return the batching mode of ``config.batching``."""
    if config.batching == "continuous":
        return Continuous()
    return Static(config.max_num_seqs, config.max_batch_delay if config.batching == "dynamic" else 0.0)
