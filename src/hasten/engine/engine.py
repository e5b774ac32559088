"""``Engine``: requests in, deltas out. ``step`` is plan, run, accept, commit, draft, report.

An exception ends the request that it belongs to and no other: the scheduler, ``accept`` and ``_report`` contain what one request
raises. A fault that belongs to no request, or a call that an interrupt cut short, ends all requests, and the engine starts afresh.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from hasten.caching.shareable_tokens import ShareableTokens
from hasten.core.errors import InvalidRequest
from hasten.core.output import Delta
from hasten.core.plan import CommitResult, CommittedSpan, Runner, RunnerOutput, StepPlan
from hasten.core.request import Request
from hasten.core.result import FinishReason
from hasten.engine.accept import accept
from hasten.engine.completion import Completion, DetokenizerFactory
from hasten.engine.guided_draft import guided_draft, truncate_forced
from hasten.engine.prefix_blocks import PrefixBlocks
from hasten.engine.request_state import RequestState
from hasten.engine.scorers import ContinuationScorer, LogitsScorer
from hasten.engine.stats import EngineStats
from hasten.engine.step_outcome import describe_exception
from hasten.sampling.guides.base import GuideFactory, no_guide
from hasten.sampling.sampler import Sampler
from hasten.scheduling.scheduler import Scheduler
from hasten.scheduling.sequence import Sequence
from hasten.speculative.cost_model import CostModel
from hasten.speculative.drafters.base import ComputedSpan, Drafter, DraftRequest, TargetOutput

log = logging.getLogger(__name__)


class Engine:
    """Single-threaded: the caller of ``step`` also calls ``add`` and ``abort``, between steps."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        detokenizer: DetokenizerFactory,
        sampler: Sampler,
        drafter: Drafter | None = None,
        *,
        guide: GuideFactory = no_guide,
        costs: CostModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``costs``: the cost model of the drafter; the engine keeps it up to date."""
        self._runner, self.scheduler, self._detokenizer, self.clock = runner, scheduler, detokenizer, clock
        self._sampler, self._drafter, self._guide, self._costs = sampler, drafter, guide, costs
        self._states: dict[str, RequestState] = {}
        self._lost: list[Delta] = []  # last deltas of requests that a reset has ended
        self._shareable_tokens = ShareableTokens(scheduler.kv.block_size)
        self._complete_call = _CompleteCall(self)
        self.stats = EngineStats()

    def add(self, request: Request) -> None:
        """Add a request. Raises ``InvalidRequest``, and changes nothing, if it could never run."""
        with self._complete_call:
            if request.request_id in self._states:
                raise InvalidRequest("a request of this id is running", got=repr(request.request_id), remedy="Use another id")
            scheduled = self.scheduler.add(request)
            try:
                state = RequestState(scheduled, self._detokenizer, self._guide(request))
                state.num_shareable_tokens = self._shareable_tokens.count(scheduled.salt, request.initial_token_ids)
            except Exception:
                self.scheduler.abort(request.request_id)
                raise
            self._states[request.request_id] = state
            self.stats.add(scheduled)

    def abort(self, request_id: str) -> list[Delta]:
        """End a request now and free its blocks. Does nothing if it has ended already."""
        with self._complete_call:
            try:
                return self._count(self._close(request_id, FinishReason.ABORT)) if self.scheduler.abort(request_id) else []
            except Exception as error:
                log.exception("request %s could not be ended; all requests end", request_id)
                self.reset(describe_exception(error))
                return []

    def reset(self, error: str) -> None:
        """End all requests with an error and free all blocks, whatever state they are in.

        The next ``step`` returns the last deltas of these requests.
        """
        states, self._states = self._states, {}
        self._lost += [state.last_delta(error, self.clock()) for state in states.values()]
        self.scheduler.reset()
        self._shareable_tokens.clear()  # an emptied prefix cache could give none of them

    def clear_prefix_cache(self) -> int:
        """Drop all cached KV blocks that no running request holds, and end all pins.

        Return how many blocks, over all KV groups.
        """
        self._shareable_tokens.clear()
        return self.scheduler.kv.clear_cached()

    def logits_scorer(self) -> LogitsScorer:
        """Return a scorer that uses this engine's runner and KV pool; usable between steps."""
        self.scheduler.kv.pins.advance(self.clock())
        return LogitsScorer(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens)

    def continuation_scorer(self, before_step: Callable[[], None] = lambda: None) -> ContinuationScorer:
        """Return a scorer that uses this engine's runner and KV pool; usable between steps."""
        self.scheduler.kv.pins.advance(self.clock())
        return ContinuationScorer(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens, before_step)

    def prefix_blocks(self, before_step: Callable[[int], None] = lambda num_tokens: None) -> PrefixBlocks:
        """Return access to the KV blocks of prefixes in this engine's pool; usable between steps."""
        self.scheduler.kv.pins.advance(self.clock())
        return PrefixBlocks(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens, before_step)

    def recover(self) -> None:
        """Start afresh after a call that an interrupt cut short.

        Speculation ends, because the state of its drafter is unknown too.
        """
        self._drafter = None
        self.reset("an interrupt cut a step short")

    def step(self) -> list[Delta]:
        """Compute one batch and return what is new; empty if nothing could run."""
        with self._complete_call:
            deltas: list[Delta] = []
            try:
                self._step(deltas)
            except Exception as error:
                log.exception("a step failed; all requests end")
                self.reset(describe_exception(error))
            if self._lost:
                deltas, self._lost = self._lost + deltas, []
            return self._count(deltas)

    def _count(self, deltas: list[Delta]) -> list[Delta]:
        """Count these deltas and the requests that end with them, and return the deltas."""
        if deltas:
            self.stats.count_deltas(deltas, self.clock())
        return deltas

    def _step(self, deltas: list[Delta]) -> None:
        """Compute one batch and add what is new to ``deltas``."""
        begin = self.clock()
        plan = self.scheduler.plan(begin)
        if self.scheduler.failures:
            deltas += self._close_raised()
        if not plan.rows:
            return
        output = self._run(plan)
        if isinstance(output, str):
            deltas += self._fail(plan, output)
            return
        now = self.clock()
        sequences = [self.scheduler.sequence(sequence_id) for sequence_id in plan.sampled_sequence_ids]
        outcome = accept(self._sampler, output, sequences, self._states, now)
        result = outcome.result()
        committed = self.scheduler.commit(result)
        if committed.moves:
            self._move(committed)
        if self.scheduler.failures:
            deltas += self._close_raised()
        self.stats.count(plan, result)
        if self._drafter is not None:
            self._draft(self._drafter, plan, committed, output, begin)
            self.stats.count_time(plan, result, self.clock() - begin)
        self._guide_drafts()
        self._report(outcome.updated, now, deltas)

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._states or self._lost)

    def idle_seconds(self) -> float:
        """Return how long the batching mode waits for further requests before the next step."""
        if self.scheduler.num_running or not self.scheduler.num_waiting:
            return 0.0
        return max(0.0, self.scheduler.next_admission_time() - self.clock())

    def _run(self, plan: StepPlan) -> RunnerOutput | str:
        """Return the logits, or an error."""
        try:
            return self._runner.run(plan)
        except Exception as error:  # any error ends the requests of this step and not the engine
            log.exception("a step of %d rows failed", len(plan.rows))
            return f"{type(error).__name__}: {error}"

    def _move(self, committed: CommitResult) -> None:
        """Move accepted drafts to their slots.

        If that fails, their requests end, and the prefix cache is emptied.
        """
        try:
            self._runner.move(committed.moves)
        except Exception as error:
            log.exception("accepted drafts could not be moved to their slots")
            for span in committed.rows:
                sequence = self.scheduler.find_sequence(span.sequence_id)
                if sequence is not None and not isinstance(span.token_indices, range):
                    self.scheduler.fail(sequence.scheduled_request, error)
            self.clear_prefix_cache()

    def _draft(self, drafter: Drafter, plan: StepPlan, committed: CommitResult, output: RunnerOutput, begin: float) -> None:
        """Set the drafts of the next step. A drafter that raises is dropped: no output depends on it."""
        try:
            if self._costs is not None and plan.decode_only:
                self._costs.record(plan.num_tokens, self.clock() - begin)
            sequences = self.scheduler.sequences_to_draft()
            requests = [_draft_request(sequence) for sequence in sequences]
            drafts = drafter.propose(requests, self._target_output(plan, committed, output))
            for sequence, draft in zip(sequences, drafts, strict=True):
                self.scheduler.set_draft(sequence, draft)
        except Exception:
            log.exception("speculative decoding is off from here on: the drafter failed")
            self._drafter = None

    def _guide_drafts(self) -> None:
        """Set drafts that the guides of their requests allow."""
        guides = {request_id: state.guide for request_id, state in self._states.items() if state.guide is not None}
        if not guides:
            return
        sequences = self.scheduler.sequences_to_draft()
        drafts = [guided_draft(guides.get(sequence.request.request_id), sequence) for sequence in sequences]
        for sequence, draft in zip(sequences, truncate_forced(drafts, self._costs), strict=True):
            self.scheduler.set_draft(sequence, draft)

    def _target_output(self, plan: StepPlan, committed: CommitResult, output: RunnerOutput) -> TargetOutput:
        if self._drafter is None or not self._drafter.aux_layer_indices:
            return TargetOutput(plan.num_tokens)
        find = self.scheduler.find_sequence
        spans = [
            span
            for row in committed.rows
            if (sequence := find(row.sequence_id)) and sequence.scheduled_request.accepts_drafts
            if (span := _computed_span(sequence, row)).rows
        ]
        return TargetOutput(plan.num_tokens, spans, lambda sequence_id: find(sequence_id) is not None, output.aux_hidden_states)

    def _fail(self, plan: StepPlan, error: str) -> list[Delta]:
        """End the requests of the plan with an error; the others go on."""
        failed = {self.scheduler.sequence(row.sequence_id).request.request_id: None for row in plan.rows}
        self.scheduler.rollback()
        deltas = []
        for request_id in failed:
            self.scheduler.abort(request_id)
            deltas += self._close(request_id, FinishReason.ERROR, f"the model could not compute this request: {error}")
        return deltas

    def _close_raised(self) -> list[Delta]:
        """End the requests that raised in the scheduler."""
        deltas = []
        for request_id, error in self.scheduler.take_failures():
            log.error("request %s failed", request_id, exc_info=error)
            deltas += self._close(request_id, FinishReason.ERROR, describe_exception(error))
        return deltas

    def _close(self, request_id: str, reason: FinishReason, error: str | None = None) -> list[Delta]:
        state = self._states.pop(request_id)
        state.end(reason, self.clock(), error)
        try:
            return state.deltas(state.completions)
        except Exception as exception:
            return [self._last_delta(state, exception)]

    def _report(self, updated: dict[str, list[Completion]], now: float, deltas: list[Delta]) -> None:
        """Add what is new in the completions to ``deltas``."""
        for request_id, completions in updated.items():
            state = self._states.get(request_id)
            if state is None:  # it raised in the scheduler
                continue
            try:
                new = state.deltas(completions, now)
                deltas += new
                if new and new[-1].output is not None:
                    del self._states[request_id]
            except Exception as error:
                self.scheduler.abort(request_id)
                del self._states[request_id]
                deltas.append(self._last_delta(state, error))

    def _last_delta(self, state: RequestState, error: Exception) -> Delta:
        """Return the end of a request whose output cannot be reported."""
        log.error("the output of request %s could not be reported", state.request.request_id, exc_info=error)
        return state.last_delta(describe_exception(error), self.clock())


class _CompleteCall:
    """A context that notices a call of the engine that an interrupt cuts short.

    The engine's state is then unknown, so the next call resets it first.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._incomplete = engine, False

    def __enter__(self) -> None:
        if self._incomplete:
            self._engine.recover()
        self._incomplete = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._incomplete = kind is not None and not issubclass(kind, Exception)


def _computed_span(sequence: Sequence, row: CommittedSpan) -> ComputedSpan:
    """Return the span without virtual tokens, which no drafter knows."""
    num_virtual = len(sequence.request.virtual_token_ids)
    rows = row.token_indices[max(0, num_virtual - row.start) :]
    return ComputedSpan(_draft_request(sequence), max(0, row.start - num_virtual), rows)


def _draft_request(sequence: Sequence) -> DraftRequest:
    return DraftRequest(sequence.id, sequence.vocabulary_token_ids, sequence.request, sequence.index)
