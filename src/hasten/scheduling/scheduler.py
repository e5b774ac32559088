"""The scheduler: every request has tokens and a count of computed ones, and each step lets that count catch up.

``plan`` decides, ``commit`` learns. Chunked prefill, prefix hits, preemption, forks and beams are this one motion. It knows
neither torch nor models; ``tests/scheduling`` checks it against a model that writes token ids into the blocks.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Tokens

from hasten.core.concat_view import ConcatView
from hasten.core.draft import MAX_TREE_TOKENS, NO_DRAFT, Draft
from hasten.core.errors import PromptTooLong
from hasten.core.plan import CommitResult, CommittedSpan, RowPlan, SlotMove, StepPlan
from hasten.core.request import Request
from hasten.core.result import Continuation, StepResult
from hasten.kv.cache_manager import KvCacheManager
from hasten.scheduling.admission import admission
from hasten.scheduling.config import SchedulerConfig
from hasten.scheduling.plan_builder import PlanBuilder
from hasten.scheduling.policies import scheduling_policy
from hasten.scheduling.sequence import ScheduledRequest, Sequence


class Scheduler:
    def __init__(self, config: SchedulerConfig, kv: KvCacheManager) -> None:
        self.config, self.kv = config, kv
        self._admission, self._policy = admission(config), scheduling_policy(config)
        self._entries: dict[str, ScheduledRequest] = {}
        self._waiting: list[ScheduledRequest] = []  # by rank
        self._running: list[ScheduledRequest] = []  # by rank
        self._sequences: dict[int, Sequence] = {}
        self._num_entries = self._num_sequences = 0
        self._planned: tuple[RowPlan, ...] = ()

    # ---------------------------------------------------------------- requests come and go

    def add(self, request: Request) -> ScheduledRequest:
        """Raises ``PromptTooLong`` if it could never run, so that it cannot block the others."""
        self.check_capacity(request)
        # Without a prefix cache a request still shares blocks among its own sequences, under a salt of its own.
        salt = f"tenant:{request.cache_salt}" if self.config.prefix_caching else f"request:{self._num_entries}"
        if request.exit_layer is not None:  # the blocks of a model of fewer layers are of use to the like of it
            salt = f"depth:{request.exit_layer}/{salt}"
        entry = ScheduledRequest(request, self._num_entries, salt)
        self._num_entries += 1
        entry.sequences.append(self._new_sequence(entry, 0, list(request.prompt_token_ids)))
        self._wait(entry)
        self._entries[request.request_id] = entry
        return entry

    def check_capacity(self, request: Request) -> None:
        """Raises ``PromptTooLong`` naming both numbers if the request cannot run even alone."""
        num_prompt, params = len(request.prompt_token_ids), request.params
        assert params.max_tokens is not None, "max_tokens is set at admission"
        total, seats = num_prompt + params.max_tokens, params.beam_width or params.n
        asked = f"{num_prompt} prompt + {params.max_tokens} new tokens"
        if total > self.config.max_model_len:
            raise PromptTooLong(
                "prompt and answer do not fit the context",
                got=f"{asked} = {total}",
                allowed=f"up to {self.config.max_model_len} tokens",
                remedy="Shorten the prompt, lower max_tokens, or raise max_model_len",
            )
        if seats > self.config.max_num_seqs:
            raise PromptTooLong(
                "the request has more sequences than may run at a time",
                got=seats,
                allowed=f"up to max_num_seqs={self.config.max_num_seqs}",
                remedy="Lower n or beam_width, or raise max_num_seqs",
            )
        size, step = self.kv.block_size, self.config.max_num_batched_tokens
        # Sequences share the prompt's blocks. A window drops them, and then a preempted sequence computes its own again.
        shared = num_prompt // size if all(group.window is None for group in self.kv.groups) else 0
        for group in self.kv.groups:
            alone = group.max_blocks(total, size, 1)
            needed = shared + seats * (alone - shared) + group.max_blocks(total, size, step) - alone
            if needed > self.kv.num_blocks:
                raise PromptTooLong(
                    "the request does not fit the KV pool",
                    got=f"{asked}, {seats} sequence{'s' if seats > 1 else ''}: {needed} blocks of {size} tokens",
                    allowed=f"up to {self.kv.num_blocks} blocks",
                    remedy="Shorten the prompt, lower max_tokens, n or beam_width, or raise kv_cache_memory",
                )

    def abort(self, request_id: str) -> bool:
        """Drop a request and free what it holds, at any time between two steps. False if it is not here (any more)."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        for sequence in list(entry.sequences):
            self._end(sequence)
        return True

    def sequence(self, sequence_id: int) -> Sequence:
        return self._sequences[sequence_id]

    def find_sequence(self, sequence_id: int) -> Sequence | None:
        """The same, or None if it has ended."""
        return self._sequences.get(sequence_id)

    def find_request(self, request_id: str) -> ScheduledRequest | None:
        return self._entries.get(request_id)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self._entries)

    def next_admission_time(self) -> float:
        """When an idle engine lets the first of the waiting requests join, as the batching mode has it."""
        return self._admission.next_admission_time(self._waiting)

    # ---------------------------------------------------------------- one step

    def plan(self, now: float) -> StepPlan:
        """What to compute now. Single tokens go first, so a long prompt never delays those who are decoding."""
        builder = PlanBuilder(self.config.max_num_batched_tokens)
        decoding: list[ScheduledRequest] = []
        others: list[ScheduledRequest] = []
        for entry in self._running:
            (decoding if entry.is_decoding else others).append(entry)
        for entry in decoding + others:
            if entry.running:  # not preempted by one before it
                self._advance(entry, builder)
        if self._waiting:
            self._admit(builder, now)
        plan = builder.build()
        self._planned = plan.rows
        return plan

    def commit(self, result: StepResult) -> CommitResult:
        """The planned rows are computed and these tokens were accepted.

        The moves that it returns must be made before anything else is computed: blocks are announced as if they were.
        """
        accepted = {continuation.parent: continuation.token_ids[:-1] for continuation in result.continuations}
        rows: list[CommittedSpan] = []
        moves: list[SlotMove] = []
        begin = 0
        for row in self._planned:
            sequence = self._sequences[row.sequence_id]
            tokens: Tokens[int] = sequence.token_ids
            num_guesses = len(sequence.draft)
            trunk = len(row.token_ids) - num_guesses
            path: tuple[int, ...] = ()
            if num_guesses:  # what was accepted of it is computed; the slots of the rest will be written again
                taken = accepted.get(sequence.id, ())
                path, tokens = sequence.draft.accepted_path(taken), ConcatView(tokens, taken)
                moves += self.kv.slot_moves(sequence.id, row.start + trunk, path)
                sequence.draft = NO_DRAFT
            sequence.num_computed = row.start + trunk + len(path)
            if row.exit_plan is not None:
                sequence.record_exits(row, result.exit_layers.get(sequence.id))
            if sequence.id not in result.corrupted:  # NaN must never enter the prefix cache
                self.kv.commit(sequence.id, tokens, sequence.num_computed, sequence.num_cacheable_tokens)
            trunk_tokens = range(begin, begin + trunk)
            computed = (*trunk_tokens, *(begin + trunk + node for node in path)) if path else trunk_tokens
            rows.append(CommittedSpan(sequence.id, row.start, computed))
            begin += len(row.token_ids)
        self._planned = ()
        self._grow(result)
        return CommitResult(tuple(rows), tuple(moves))

    def _grow(self, result: StepResult) -> None:
        """Sequences end, go on and fork as the result has it."""
        for sequence_id in result.corrupted:
            if self.kv.is_open(sequence_id):
                self.kv.discard(sequence_id)
            self._end(self._sequences[sequence_id])
        for sequence_id in result.dropped:
            self._end(self._sequences[sequence_id])
        lines: dict[int, list[Continuation]] = {}
        for continuation in result.continuations:
            lines.setdefault(continuation.parent, []).append(continuation)
        for parent_id, continuations in lines.items():
            parent = self._sequences[parent_id]
            forks = [self._fork(parent) for _ in continuations[1:]]
            for sequence, continuation in zip([parent, *forks], continuations, strict=True):
                self._extend(sequence, continuation)

    def sequences_to_draft(self) -> list[Sequence]:
        """The sequences that want one more token and may be given a draft: all but beams, those not yet begun, and those whose
        tokens may leave early.
        """
        entries = (entry for entry in self._running if entry.accepts_drafts)
        return [s for entry in entries for s in entry.sequences if s.num_remaining == 1 and s.num_output_tokens]

    def set_draft(self, sequence: Sequence, draft: Draft) -> None:
        """What the next step verifies after the sequence's last token, if there are tokens and blocks to spare.

        Cut to what the request may still get, less the token that the step gives anyway.
        """
        params = sequence.request.params
        assert params.max_tokens is not None
        most = MAX_TREE_TOKENS if draft.branches else len(draft)
        sequence.draft = draft.truncate(most, params.max_tokens - sequence.num_output_tokens - 1)

    def rollback(self) -> None:
        """The planned rows were not computed: their requests start again from what was committed."""
        for entry in {self._sequences[row.sequence_id].scheduled_request: None for row in self._planned}:
            self._preempt(entry)
        self._planned = ()

    # ---------------------------------------------------------------- how a plan is made

    def _advance(self, entry: ScheduledRequest, builder: PlanBuilder) -> None:
        """Plan what a running request can compute; preempt from the end of the order if blocks run out."""
        for sequence, count in self._wanted(entry, builder):
            start, stop = sequence.num_computed, sequence.num_computed + count
            draft = sequence.draft.truncate(builder.budget - count)
            num_guesses = len(draft)
            while (copies := self.kv.reserve(sequence.id, start, stop + num_guesses)) is None:
                if num_guesses:
                    draft, num_guesses = NO_DRAFT, 0  # a guess is not worth anybody's blocks
                    continue
                victim = self._running[-1]
                builder.drop(victim)
                self._preempt(victim)
                if victim is entry:
                    return
            sequence.draft = draft
            tokens = (*sequence.token_ids[start:stop], *draft.token_ids)
            num_logits = 1 + num_guesses if count == sequence.num_remaining else 0
            tree = draft.parents if num_guesses and draft.branches else ()
            exits = sequence.exits(start, stop)
            row = RowPlan(sequence.id, start, tokens, self.kv.block_tables(sequence.id), num_logits, tree, exits)
            builder.add(entry, row, copies)

    def _wanted(self, entry: ScheduledRequest, builder: PlanBuilder) -> Iterator[tuple[Sequence, int]]:
        """(sequence, tokens to compute) as far as the budget goes."""
        together = entry.uses_beam_search and len(entry.sequences) > 1
        if together and all(self.kv.is_open(s.id) and s.num_remaining == 1 for s in entry.sequences):
            if builder.budget >= len(entry.sequences):
                yield from ((sequence, 1) for sequence in entry.sequences)
            return
        for sequence in entry.sequences:
            if not self.kv.is_open(sequence.id) and not self._open(sequence):
                continue
            # Beams that were preempted catch up but for their last token, which all of them compute in one step.
            wanted = sequence.num_remaining - together
            count = min(wanted, builder.budget)
            if count > 0:
                yield sequence, count

    def _open(self, sequence: Sequence) -> bool:
        """Give the sequence its cached prefix; False while another sequence is computing the block it needs next."""
        entry = sequence.scheduled_request
        hashes = entry.hashes.get(sequence.id) or self._hashes(sequence)
        if self.kv.prefix_in_flight(hashes):
            return False
        sequence.num_computed = self.kv.open(sequence.id, entry.salt, hashes)
        entry.hashes.pop(sequence.id, None)
        return True

    def _hashes(self, sequence: Sequence) -> list[bytes]:
        """Of the blocks that it may share with others."""
        stop = (
            None if sequence.num_cacheable_tokens is None else sequence.num_cacheable_tokens + 1
        )  # ``hashes`` leaves the last token out
        return self.kv.block_hashes(sequence.scheduled_request.salt, sequence.token_ids[:stop])

    def _admit(self, builder: PlanBuilder, now: float) -> None:
        """Let waiting requests join, in order, while there are seats, tokens and blocks."""
        seats = self.config.max_num_seqs - sum(entry.max_sequences for entry in self._running)
        if seats <= 0:
            return
        for entry in list(self._admission.may_join(self._waiting, len(self._running), now)):
            if builder.budget == 0 or entry.max_sequences > seats:
                return
            first = entry.sequences[0]
            hashes = entry.hashes.get(first.id)
            if hashes is None:
                hashes = entry.hashes[first.id] = self._hashes(first)
            if self.kv.prefix_in_flight(hashes):
                continue  # its prefix is being computed; the ones behind it need not wait for that
            if not self._fits(entry, hashes):
                return
            seats -= entry.max_sequences
            self._waiting.remove(entry)
            insort(self._running, entry, key=self._policy.rank)
            entry.running = True
            self._advance(entry, builder)
            if entry.first_scheduled is None:
                entry.first_scheduled, entry.num_cached_tokens = now, first.num_computed

    def _fits(self, entry: ScheduledRequest, hashes: list[bytes]) -> bool:
        """Whether the request's tokens find room beside the running ones, each of which may soon want one more block."""
        if not self._running:
            return True  # ``add`` made sure of it
        first, *others = entry.sequences
        shared = len(entry.request.prompt_token_ids) // self.kv.block_size
        spare = sum(len(running.sequences) for running in self._running)
        step = self.config.max_num_batched_tokens
        spare += sum(max(0, self.kv.max_blocks(len(sequence.token_ids), step) - shared) for sequence in others)
        return self.kv.fits(hashes, len(first.token_ids) + 1, step, spare)

    # ---------------------------------------------------------------- how the state changes

    def _new_sequence(self, entry: ScheduledRequest, index: int, token_ids: list[int]) -> Sequence:
        sequence = Sequence(self._num_sequences, entry, index, token_ids, exit_layer=entry.request.exit_layer)
        self._num_sequences += 1
        self._sequences[sequence.id] = sequence
        return sequence

    def _fork(self, parent: Sequence) -> Sequence:
        child = self._new_sequence(parent.scheduled_request, parent.index, list(parent.token_ids))
        child.num_computed = parent.num_computed
        child.exit_layer, child.early, child.num_cacheable_tokens = (
            parent.exit_layer,
            dict(parent.early),
            parent.num_cacheable_tokens,
        )
        parent.scheduled_request.sequences.append(child)
        self.kv.fork(parent.id, child.id)
        return child

    def _extend(self, sequence: Sequence, continuation: Continuation) -> None:
        sequence.token_ids += continuation.token_ids
        if continuation.index is not None:
            sequence.index = continuation.index
        if continuation.finish is not None:
            self._end(sequence)

    def _preempt(self, entry: ScheduledRequest) -> None:
        """Free all that a running request holds; it will be computed again, but for what the prefix cache keeps."""
        for sequence in entry.sequences:
            if self.kv.is_open(sequence.id):
                self.kv.close(sequence.id)
            sequence.num_computed, sequence.draft = 0, NO_DRAFT
        self._running.remove(entry)
        entry.running = False
        entry.num_preemptions += 1
        self._wait(entry)

    def _wait(self, entry: ScheduledRequest) -> None:
        insort(self._waiting, entry, key=self._policy.rank)

    def _end(self, sequence: Sequence) -> None:
        entry = sequence.scheduled_request
        if self.kv.is_open(sequence.id):
            self.kv.close(sequence.id)
        del self._sequences[sequence.id]
        entry.sequences.remove(sequence)
        if not entry.sequences:
            del self._entries[entry.request.request_id]
            (self._running if entry.running else self._waiting).remove(entry)
            entry.running = False
