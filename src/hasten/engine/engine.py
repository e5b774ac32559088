"""``Engine``: requests in, deltas out. ``step`` is plan, run, accept, commit, draft, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hasten.core.errors import InvalidRequest
from hasten.core.output import Delta
from hasten.core.plan import CommitResult, Runner, RunnerOutput, StepPlan
from hasten.core.request import Request
from hasten.core.result import FinishReason
from hasten.engine.accept import accept
from hasten.engine.completion import Completion, DetokenizerFactory
from hasten.engine.request_state import RequestState
from hasten.engine.scorers import ContinuationScorer, LogitsScorer
from hasten.engine.stats import EngineStats
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
        costs: CostModel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``costs``: the cost model of the drafter; the engine keeps it up to date."""
        self._runner, self.scheduler, self._detokenizer, self.clock = runner, scheduler, detokenizer, clock
        self._sampler, self._drafter, self._costs = sampler, drafter, costs
        self._states: dict[str, RequestState] = {}
        self.stats = EngineStats()

    def add(self, request: Request) -> None:
        """Add a request. Raises ``InvalidRequest``, and changes nothing, if it could never run."""
        if request.request_id in self._states:
            raise InvalidRequest("a request of this id is running", got=repr(request.request_id), remedy="Use another id")
        self._states[request.request_id] = RequestState(self.scheduler.add(request), self._detokenizer)

    def abort(self, request_id: str) -> list[Delta]:
        """End a request now and free its blocks. Does nothing if it has ended already."""
        if not self.scheduler.abort(request_id):
            return []
        return self._close(request_id, FinishReason.ABORT)

    def logits_scorer(self) -> LogitsScorer:
        """Return a scorer that uses this engine's runner and KV pool; usable between steps."""
        return LogitsScorer(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens)

    def continuation_scorer(self) -> ContinuationScorer:
        """Return a scorer that uses this engine's runner and KV pool; usable between steps."""
        return ContinuationScorer(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens)

    def step(self) -> list[Delta]:
        """Compute one batch and return what is new; empty if nothing could run."""
        begin = self.clock()
        plan = self.scheduler.plan(begin)
        if not plan.rows:
            return []
        output = self._run(plan)
        if isinstance(output, str):
            return self._fail(plan, output)
        now = self.clock()
        sequences = [self.scheduler.sequence(sequence_id) for sequence_id in plan.sampled_sequence_ids]
        outcome = accept(self._sampler, output, sequences, self._states, now)
        result = outcome.result()
        committed = self.scheduler.commit(result)
        if committed.moves:
            self._runner.move(committed.moves)
        self.stats.count(plan, result)
        if self._drafter is not None:
            if self._costs is not None and plan.decode_only:
                self._costs.record(plan.num_tokens, self.clock() - begin)
            self._draft(self._drafter, plan, committed, output)
            self.stats.count_time(plan, result, self.clock() - begin)
        return self._report(outcome.updated, now)

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._states)

    def idle_seconds(self) -> float:
        """Return how long the batching mode waits for further requests before the next step."""
        if self.scheduler.num_running or not self.scheduler.num_waiting:
            return 0.0
        return max(0.0, self.scheduler.next_admission_time() - self.clock())

    def _run(self, plan: StepPlan) -> RunnerOutput | str:
        """Return the logits, or an error. An interrupt undoes the plan."""
        try:
            return self._runner.run(plan)
        except Exception as error:  # any error ends the requests of this step and not the engine
            log.exception("a step of %d rows failed", len(plan.rows))
            return f"{type(error).__name__}: {error}"
        except BaseException:
            self.scheduler.rollback()
            raise

    def _draft(self, drafter: Drafter, plan: StepPlan, committed: CommitResult, output: RunnerOutput) -> None:
        """Set the drafts of the next step. A drafter that raises is dropped: no output depends on it."""
        sequences = self.scheduler.sequences_to_draft()
        requests = [_draft_request(sequence) for sequence in sequences]
        try:
            drafts = list(zip(sequences, drafter.propose(requests, self._target_output(plan, committed, output)), strict=True))
        except Exception:
            log.exception("speculative decoding is off from here on: the drafter failed")
            self._drafter = None
            return
        for sequence, draft in drafts:
            self.scheduler.set_draft(sequence, draft)

    def _target_output(self, plan: StepPlan, committed: CommitResult, output: RunnerOutput) -> TargetOutput:
        if self._drafter is None or not self._drafter.aux_layer_indices:
            return TargetOutput(plan.num_tokens)
        find = self.scheduler.find_sequence
        spans = [
            ComputedSpan(_draft_request(sequence), row.start, row.token_indices)
            for row in committed.rows
            if (sequence := find(row.sequence_id)) and sequence.scheduled_request.accepts_drafts
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

    def _close(self, request_id: str, reason: FinishReason, error: str | None = None) -> list[Delta]:
        state = self._states.pop(request_id)
        state.end(reason, self.clock(), error)
        return state.deltas(state.completions)

    def _report(self, updated: dict[str, list[Completion]], now: float) -> list[Delta]:
        deltas = []
        for request_id, completions in updated.items():
            state = self._states[request_id]
            state.record_time(now)
            deltas += state.deltas(completions)
            if state.finished:
                del self._states[request_id]
        return deltas


def _draft_request(sequence: Sequence) -> DraftRequest:
    return DraftRequest(sequence.id, sequence.token_ids, sequence.request, sequence.index)
