"""``Scheduler``: each step raises the number of computed tokens of its requests.

``plan`` decides what a step computes and ``commit`` records the result. Chunked prefill, prefix hits, preemption, forks and beams
need no other mechanism. ``tests/scheduling`` checks it with a model that writes token ids into the KV blocks.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import replace

from hasten.core.concat_view import ConcatView
from hasten.core.draft import MAX_TREE_TOKENS, NO_DRAFT, Draft
from hasten.core.plan import CommitResult, CommittedSpan, RowPlan, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.core.result import Continuation, StepResult
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.prefix_hash import cache_salt
from hasten.scheduling.admission import admission, service_rank
from hasten.scheduling.capacity import check_capacity
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.plan_builder import PlanBuilder
from hasten.scheduling.sequence import ScheduledRequest, Sequence


class Scheduler:
    def __init__(self, config: SchedulerConfig, kv: KvCacheManager) -> None:
        self.config, self.kv = config, kv
        self._arrival_numbers, self._sequence_ids = itertools.count(), itertools.count()
        self.reset()

    def reset(self) -> None:
        """Remove all requests and free all blocks, whatever state they are in."""
        self.kv.reset()
        self._admission = admission(self.config)
        self._requests: dict[str, ScheduledRequest] = {}
        self._waiting: list[ScheduledRequest] = []  # by rank
        self._running: list[ScheduledRequest] = []  # by rank
        self._sequences: dict[int, Sequence] = {}
        self._planned: tuple[RowPlan, ...] = ()  # rows of the step in progress
        self.failures: list[tuple[str, Exception]] = []  # see ``take_failures``

    # ---------------------------------------------------------------- adding and removing requests

    def add(self, request: Request) -> ScheduledRequest:
        """Add a request to the waiting ones.

        Raises ``PromptTooLong``, and changes nothing, if it can never run.
        """
        self.check_capacity(request)
        number = next(self._arrival_numbers)
        # Without a prefix cache, only the sequences of one request share blocks.
        salt = cache_salt(request.cache_salt, request.exit_layer) if self.config.prefix_caching else f"request:{number}"
        pins = [pin for pin in request.pins if pin.num_tokens >= self.kv.block_size]
        scheduled = ScheduledRequest(request, service_rank(self.config, request, number), salt, pins)
        tokens = [*request.initial_token_ids]
        sequence = Sequence(next(self._sequence_ids), scheduled, 0, tokens, exit_layer=request.exit_layer)
        insort(self._waiting, scheduled, key=_rank)
        self._register(sequence)
        self._requests[request.request_id] = scheduled
        return scheduled

    def check_capacity(self, request: Request) -> None:
        """Raise ``PromptTooLong``, with both numbers, if the request cannot run even alone."""
        check_capacity(request, self.config, self.kv)

    def abort(self, request_id: str) -> bool:
        """Remove a request and free its blocks. Return False if the scheduler does not have it."""
        scheduled = self._requests.get(request_id)
        if scheduled is None:
            return False
        for sequence in list(scheduled.sequences):
            self._end(sequence)
        return True

    def sequence(self, sequence_id: int) -> Sequence:
        return self._sequences[sequence_id]

    def find_sequence(self, sequence_id: int) -> Sequence | None:
        """Return the sequence, or None if it has ended."""
        return self._sequences.get(sequence_id)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def next_admission_time(self) -> float:
        """Return when an idle engine may admit the first waiting request."""
        return self._admission.next_admission_time(self._waiting)

    # ---------------------------------------------------------------- requests that raise

    def take_failures(self) -> list[tuple[str, Exception]]:
        """Return the requests that ``plan`` and ``commit`` have removed, and what they raised.

        Raises ``AssertionError`` if a fault has left the blocks inconsistent.
        """
        failures, self.failures = self.failures, []
        self.kv.check()
        return failures

    def fail(self, scheduled: ScheduledRequest, error: Exception) -> None:
        """Remove a request that raised. Its blocks leave the prefix cache, because they may hold anything."""
        for sequence in list(scheduled.sequences):
            if self.kv.is_open(sequence.id):
                self.kv.discard(sequence.id)
            self._end(sequence)
        self.failures.append((scheduled.request.request_id, error))

    # ---------------------------------------------------------------- one step

    def plan(self, now: float) -> StepPlan:
        """Return what this step computes. A request that raises is removed; see ``take_failures``."""
        builder = PlanBuilder(self.config.max_num_batched_tokens)
        self.kv.pins.advance(now)
        # Decoding requests go first, so that a long prompt does not delay them.
        for scheduled in sorted(self._running, key=lambda scheduled: not scheduled.is_decoding):
            if scheduled.is_running:  # an earlier request may have preempted it
                try:
                    self._schedule(scheduled, builder)
                except Exception as error:
                    builder.drop(scheduled)
                    self.fail(scheduled, error)
        if self._waiting:
            self._admit(builder, now)
        plan = builder.build()
        self._planned = plan.rows
        return plan

    def commit(self, result: StepResult) -> CommitResult:
        """Record that the planned rows are computed, and apply the accepted tokens.

        The caller makes the returned moves before the next computation, because the prefix cache assumes that they are made.
        A request that raises is removed; see ``take_failures``.
        """
        accepted = {continuation.parent: continuation.token_ids[:-1] for continuation in result.continuations}
        unpublished = result.corrupted + result.failed
        spans: list[CommittedSpan] = []
        moves: list[SlotMove] = []
        begin = 0  # index of the row's first token in the step
        for row in self._planned:
            sequence = self._sequences.get(row.sequence_id)
            if sequence is None:  # another row of the request has raised
                begin += len(row.token_ids)
                continue
            try:
                token_ids: Tokens[int] = sequence.token_ids
                num_draft_tokens = 0 if sequence.draft is NO_DRAFT else len(sequence.draft)
                draft_begin = len(row.token_ids) - num_draft_tokens
                path: tuple[int, ...] = ()
                if num_draft_tokens:  # the slots of rejected tokens are overwritten later
                    draft_token_ids = accepted.get(sequence.id, ())
                    path, token_ids = sequence.draft.accepted_path(draft_token_ids), ConcatView(token_ids, draft_token_ids)
                    moves += self.kv.slot_moves(sequence.id, row.start + draft_begin, path)
                    sequence.draft = NO_DRAFT
                sequence.num_computed_tokens = row.start + draft_begin + len(path)
                if row.exit_plan is not None:
                    sequence.record_exit(row, result.exit_layers.get(sequence.id))
                if sequence.id not in unpublished:
                    self.kv.commit(sequence.id, token_ids, sequence.num_computed_tokens, sequence.num_cacheable_tokens)
                    self._set_pins(sequence)
                indices: Tokens[int] = range(begin, begin + draft_begin)
                if path:
                    indices = (*indices, *(begin + draft_begin + node for node in path))
                spans.append(CommittedSpan(sequence.id, row.start, indices))
            except Exception as error:
                self.fail(sequence.scheduled_request, error)
            begin += len(row.token_ids)
        self._planned = ()
        self._apply(result)
        return CommitResult(tuple(spans), tuple(moves))

    def _apply(self, result: StepResult) -> None:
        """End, extend and fork sequences."""
        for sequence_id in (*result.corrupted, *result.failed, *result.dropped):
            sequence = self._sequences.get(sequence_id)
            if sequence is None:  # its request has raised
                continue
            try:
                if sequence_id in result.corrupted and self.kv.is_open(sequence_id):
                    self.kv.discard(sequence_id)
                self._end(sequence)
            except Exception as error:
                self.fail(sequence.scheduled_request, error)
        children: dict[int, list[Continuation]] = {}
        for continuation in result.continuations:
            children.setdefault(continuation.parent, []).append(continuation)
        for parent_id, continuations in children.items():
            parent = self._sequences.get(parent_id)
            if parent is None:  # its request has raised
                continue
            try:
                forks = [self._fork(parent) for _ in continuations[1:]]
                for sequence, continuation in zip([parent, *forks], continuations, strict=True):
                    sequence.token_ids += continuation.token_ids
                    if continuation.index is not None:
                        sequence.index = continuation.index
                    if continuation.finish is not None:
                        self._end(sequence)
            except Exception as error:
                self.fail(parent.scheduled_request, error)

    def sequences_to_draft(self) -> list[Sequence]:
        """Return the sequences that the next step decodes and that accept drafts."""
        sequences = [s for scheduled in self._running if scheduled.accepts_drafts for s in scheduled.sequences]
        return [s for s in sequences if s.num_uncomputed_tokens == 1 and s.num_output_tokens]

    def set_draft(self, sequence: Sequence, draft: Draft) -> None:
        """Set the draft that the next step verifies, as far as its budget and the blocks permit.

        The draft is truncated to the output tokens that the request may still get, less the token that every step yields.
        """
        max_tokens = sequence.request.params.max_tokens
        assert max_tokens is not None
        max_nodes = len(draft) if draft.is_chain else MAX_TREE_TOKENS
        sequence.draft = draft.truncate(max_nodes, max_tokens - sequence.num_output_tokens - 1)

    def rollback(self) -> None:
        """Preempt the requests of the planned rows, because the step failed."""
        for scheduled in {self._sequences[row.sequence_id].scheduled_request: None for row in self._planned}:
            self._preempt(scheduled)
        self._planned = ()

    # ---------------------------------------------------------------- planning

    def _schedule(self, scheduled: ScheduledRequest, builder: PlanBuilder) -> None:
        """Plan the rows of a running request; preempt requests of the largest rank if blocks run out.

        Pins are dropped if no other request runs.
        """
        for sequence, num_new_tokens in self._tokens_to_compute(scheduled, builder):
            start, stop = sequence.num_computed_tokens, sequence.num_computed_tokens + num_new_tokens
            draft, num_draft_tokens = sequence.draft, 0
            if draft is not NO_DRAFT:
                draft = draft.truncate(builder.token_budget - num_new_tokens)
                num_draft_tokens = len(draft)
            while (copies := self.kv.reserve(sequence.id, start, stop + num_draft_tokens)) is None:
                if num_draft_tokens:
                    draft, num_draft_tokens = NO_DRAFT, 0  # no request is preempted for a draft
                    continue
                victim = self._running[-1]
                if len(self._running) == 1 and self.kv.pins.drop_one():
                    continue  # only pins are in its way
                builder.drop(victim)
                self._preempt(victim)
                if victim is scheduled:
                    return
            sequence.draft = draft
            row = RowPlan(
                sequence.id,
                start,
                (*sequence.token_ids[start:stop], *draft.token_ids),
                self.kv.block_tables(sequence.id),
                num_logits=1 + num_draft_tokens if stop == len(sequence.token_ids) else 0,
                tree=draft.parents if num_draft_tokens and not draft.is_chain else (),
                exit_plan=sequence.exit_plan(start, stop),
            )
            builder.add(scheduled, row, copies)

    def _tokens_to_compute(self, scheduled: ScheduledRequest, builder: PlanBuilder) -> Iterator[tuple[Sequence, int]]:
        """Yield (sequence, number of tokens) within the token budget."""
        sequences = scheduled.sequences
        in_lockstep = scheduled.uses_beam_search and len(sequences) > 1
        if in_lockstep and all(self.kv.is_open(s.id) and s.num_uncomputed_tokens == 1 for s in sequences):
            if builder.token_budget >= len(sequences):
                yield from ((sequence, 1) for sequence in sequences)
            return
        for sequence in sequences:
            if not self.kv.is_open(sequence.id) and not self._open(sequence):
                continue
            # Preempted beams stop before their last token: one step computes it for all of them.
            num_tokens = min(sequence.num_uncomputed_tokens - in_lockstep, builder.token_budget)
            if num_tokens > 0:
                yield sequence, num_tokens

    def _open(self, sequence: Sequence) -> bool:
        """Give the sequence its cached prefix. Return False if the block after it is in flight."""
        hashes = self._block_hashes(sequence)
        if self.kv.prefix_in_flight(hashes):
            return False
        sequence.num_computed_tokens = self.kv.open(sequence.id, sequence.scheduled_request.salt, hashes)
        sequence.block_hashes = None
        return True

    def _block_hashes(self, sequence: Sequence) -> list[bytes]:
        """Return the hashes of the blocks that the sequence may share; they are computed once while it waits."""
        if sequence.block_hashes is None:
            limit = sequence.num_cacheable_tokens
            stop = None if limit is None else limit + 1  # ``block_hashes`` omits the last token
            sequence.block_hashes = self.kv.block_hashes(sequence.scheduled_request.salt, sequence.token_ids[:stop])
        return sequence.block_hashes

    def _admit(self, builder: PlanBuilder, now: float) -> None:
        """Admit waiting requests by rank while sequences, tokens and blocks suffice."""
        num_free = self.config.max_num_seqs - sum(scheduled.max_sequences for scheduled in self._running)
        for scheduled in list(self._admission.admissible(self._waiting, len(self._running), now)):
            if builder.token_budget == 0 or scheduled.max_sequences > num_free:
                return
            max_sequences = scheduled.max_sequences
            try:
                if not self._try_admit(scheduled, builder, now):
                    return
            except Exception as error:
                builder.drop(scheduled)
                self.fail(scheduled, error)
            num_free -= max_sequences if scheduled.is_running else 0

    def _try_admit(self, scheduled: ScheduledRequest, builder: PlanBuilder, now: float) -> bool:
        """Admit one waiting request. Return False if it, and so every later one, has to wait for blocks."""
        first = scheduled.sequences[0]
        hashes = self._block_hashes(first)
        if self.kv.prefix_in_flight(hashes):
            return True  # later requests need not wait for its prefix
        if not self._fits(scheduled, hashes):
            return False
        self._waiting.remove(scheduled)
        insort(self._running, scheduled, key=_rank)
        scheduled.is_running = True
        is_new = scheduled.first_scheduled is None
        if is_new:
            scheduled.num_pinned_tokens = self.kv.use_pins(scheduled.salt, hashes, scheduled.request.initial_token_ids)
        self._schedule(scheduled, builder)
        if is_new:
            scheduled.first_scheduled, scheduled.num_cached_tokens = now, first.num_computed_tokens
        self._set_pins(first)
        return True

    def _set_pins(self, sequence: Sequence) -> None:
        """Set the pins of its request whose prefixes the sequence has computed or found in the cache."""
        scheduled = sequence.scheduled_request
        if scheduled.pins:
            scheduled.pins, new = self.kv.set_pins(sequence.id, scheduled.pins, sequence.num_computed_tokens)
            scheduled.new_pins += new

    def _fits(self, scheduled: ScheduledRequest, hashes: list[bytes]) -> bool:
        """Whether the KV pool has room for the request and one more block for every running sequence."""
        if not self._running:
            return True  # ``add`` checks the capacity
        first, *others = scheduled.sequences
        num_shared = scheduled.request.num_initial_tokens // self.kv.block_size
        step = self.config.max_num_batched_tokens
        num_spare = sum(len(running.sequences) for running in self._running)
        num_spare += sum(max(0, self.kv.max_blocks(len(sequence.token_ids), step) - num_shared) for sequence in others)
        return self.kv.fits(hashes, len(first.token_ids) + 1, step, num_spare)

    # ---------------------------------------------------------------- sequences

    def _register(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        sequence.scheduled_request.sequences.append(sequence)

    def _fork(self, parent: Sequence) -> Sequence:
        child = replace(
            parent,
            id=next(self._sequence_ids),
            token_ids=list(parent.token_ids),
            token_exit_layers=dict(parent.token_exit_layers),
        )
        self._register(child)
        self.kv.fork(parent.id, child.id)
        return child

    def _preempt(self, scheduled: ScheduledRequest) -> None:
        """Free the blocks of a running request, which computes its uncached tokens again."""
        for sequence in scheduled.sequences:
            if self.kv.is_open(sequence.id):
                self.kv.close(sequence.id)
            sequence.num_computed_tokens, sequence.draft = 0, NO_DRAFT
        self._running.remove(scheduled)
        scheduled.is_running = False
        scheduled.num_preemptions += 1
        insort(self._waiting, scheduled, key=_rank)

    def _end(self, sequence: Sequence) -> None:
        scheduled = sequence.scheduled_request
        if self.kv.is_open(sequence.id):
            self.kv.close(sequence.id)
        del self._sequences[sequence.id]
        scheduled.sequences.remove(sequence)
        if not scheduled.sequences:
            del self._requests[scheduled.request.request_id]
            (self._running if scheduled.is_running else self._waiting).remove(scheduled)
            scheduled.is_running = False


def _rank(scheduled: ScheduledRequest) -> tuple[float, int]:
    return scheduled.rank
