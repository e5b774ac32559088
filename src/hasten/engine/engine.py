"""The engine: requests in, deltas out, one step at a time. ``step`` is the whole of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hasten.core.errors import InvalidRequest
from hasten.core.output import Delta
from hasten.core.plan import CommitResult, Runner, RunnerOutput, StepPlan
from hasten.core.request import Request
from hasten.core.result import FinishReason
from hasten.engine.acceptor import Acceptor
from hasten.engine.completion import Completion, DetokenizerFactory
from hasten.engine.continuation_scorer import ContinuationScorer
from hasten.engine.logits_scorer import LogitsScorer
from hasten.engine.request_state import RequestState
from hasten.engine.stats import EngineStats
from hasten.sampling.sampler import Sampler
from hasten.scheduling.scheduler import Scheduler
from hasten.scheduling.sequence import Sequence
from hasten.speculative.drafters.base import ComputedSpan, Drafter, DraftRequest, TargetOutput
from hasten.speculative.step_costs import StepCosts

log = logging.getLogger(__name__)


class Engine:
    """Single-threaded: whoever calls ``step`` also calls ``add`` and ``abort``, between steps."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        detokenizer: DetokenizerFactory,
        sampler: Sampler,
        drafter: Drafter | None = None,
        *,
        costs: StepCosts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``costs`` of steps that decode, which drafters go by: they are told what each step takes."""
        self._runner, self.scheduler, self._detokenizer, self.clock = runner, scheduler, detokenizer, clock
        self._acceptor, self._drafter, self._costs = Acceptor(sampler), drafter, costs
        self._records: dict[str, RequestState] = {}
        self.stats = EngineStats()

    def add(self, request: Request) -> None:
        """Raises ``InvalidRequest`` if the request could never run; the engine goes on as if it had not been seen."""
        if request.request_id in self._records:
            raise InvalidRequest("a request of this id is running", got=repr(request.request_id), remedy="Use another id")
        entry = self.scheduler.add(request)
        self._records[request.request_id] = RequestState(request, entry, self._detokenizer)

    def abort(self, request_id: str) -> list[Delta]:
        """End a request now and free what it holds. Nothing happens if it has ended already."""
        if not self.scheduler.abort(request_id):
            return []
        return self._close(request_id, FinishReason.ABORT)

    def scorer(self) -> LogitsScorer:
        """Reads given texts through this engine's runner and KV pool; may be used between steps."""
        return LogitsScorer(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens)

    def continuations(self) -> ContinuationScorer:
        """Scores texts after a prompt, as ``scorer`` does whole ones."""
        return ContinuationScorer(self._runner, self.scheduler.kv, self.scheduler.config.max_num_batched_tokens)

    def step(self) -> list[Delta]:
        """Compute one batch. Returns what is new; empty if nothing could run."""
        begin = self.clock()
        plan = self.scheduler.plan(begin)
        if not plan.rows:
            return []
        output = self._run(plan)
        if isinstance(output, str):
            return self._fail(plan, output)
        now = self.clock()
        sequences = [self.scheduler.sequence(sequence_id) for sequence_id in plan.sampled_sequence_ids]
        result, news = self._acceptor.accept(output, sequences, self._records, now)
        committed = self.scheduler.commit(result)
        if committed.moves:
            self._runner.move(committed.moves)
        self.stats.count(plan, result)
        if self._drafter is not None:
            if self._costs is not None and plan.decode_only:
                self._costs.note(plan.num_tokens, self.clock() - begin)
            self._draft(self._drafter, plan, committed, output)
            self.stats.count_time(plan, result, self.clock() - begin)
        return self._report(news, now)

    @property
    def unfinished(self) -> bool:
        return bool(self._records)

    def idle_seconds(self) -> float:
        """How long until a step can do something, where a batching mode waits for company."""
        if self.scheduler.num_running or not self.scheduler.num_waiting:
            return 0.0
        return max(0.0, self.scheduler.next_admission_time() - self.clock())

    def _run(self, plan: StepPlan) -> RunnerOutput | str:
        """The logits, or what went wrong. An interrupt leaves the engine as if the step had never been planned."""
        try:
            return self._runner.run(plan)
        except Exception as error:  # whatever it is, it ends the requests of this step and not the engine
            log.exception("a step of %d rows failed", len(plan.rows))
            return f"{type(error).__name__}: {error}"
        except BaseException:
            self.scheduler.rollback()
            raise

    def _draft(self, drafter: Drafter, plan: StepPlan, committed: CommitResult, output: RunnerOutput) -> None:
        """Drafts for the next step. A drafter that fails is asked no more: no answer depends on it."""
        sequences = self.scheduler.sequences_to_draft()
        lines = [_line(sequence) for sequence in sequences]
        try:
            drafts = list(zip(sequences, drafter.propose(lines, self._seen(plan, committed, output, drafter)), strict=True))
        except Exception:
            log.exception("speculation is off from here on: the drafter failed")
            self._drafter = None
            return
        for sequence, draft in drafts:
            self.scheduler.set_draft(sequence, draft)

    def _seen(self, plan: StepPlan, committed: CommitResult, output: RunnerOutput, drafter: Drafter) -> TargetOutput:
        if not drafter.aux_layer_indices:
            return TargetOutput(plan.num_tokens)
        alive = [(row, self.scheduler.find_sequence(row.sequence_id)) for row in committed.rows]
        wanted = [(row, sequence) for row, sequence in alive if sequence and sequence.scheduled_request.accepts_drafts]
        computed = [ComputedSpan(_line(sequence), row.start, row.token_indices) for row, sequence in wanted]
        return TargetOutput(
            plan.num_tokens,
            computed,
            lambda sequence_id: self.scheduler.find_sequence(sequence_id) is not None,
            output.aux_hidden_states,
        )

    def _fail(self, plan: StepPlan, error: str) -> list[Delta]:
        """The requests of the plan end with the error; all others go on."""
        failed = {self.scheduler.sequence(row.sequence_id).request.request_id: None for row in plan.rows}
        self.scheduler.rollback()
        deltas = []
        for request_id in failed:
            self.scheduler.abort(request_id)
            deltas += self._close(request_id, FinishReason.ERROR, f"the model could not compute this request: {error}")
        return deltas

    def _close(self, request_id: str, reason: FinishReason, error: str | None = None) -> list[Delta]:
        record = self._records.pop(request_id)
        record.end(reason, self.clock(), error)
        return record.deltas(record.answers)

    def _report(self, news: dict[str, list[Completion]], now: float) -> list[Delta]:
        deltas = []
        for request_id, answers in news.items():
            record = self._records[request_id]
            record.record_time(now)
            deltas += record.deltas(answers)
            if record.finished:
                del self._records[request_id]
        return deltas


def _line(sequence: Sequence) -> DraftRequest:
    return DraftRequest(sequence.id, sequence.token_ids, sequence.request, sequence.index)
