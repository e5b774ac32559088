"""The oracle's negative controls: each planted fault must be caught within a few seeds, or the suite proves nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import pytest
from torch import Tensor

from hasten.core.draft import Draft
from hasten.core.plan import CommitResult, RowPlan
from hasten.core.request import Request
from hasten.core.result import StepResult
from hasten.engine import acceptor
from hasten.kv import prefix_hash
from hasten.kv.allocator import BlockAllocator
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import SampledToken, Sampler
from hasten.scheduling import sequence as sequences
from hasten.scheduling.plan_builder import PlanBuilder
from hasten.scheduling.scheduler import Scheduler
from hasten.scheduling.sequence import ScheduledRequest
from hasten.scheduling.sequence import Sequence as Sequence_

from .world import FEATURES, World

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def skip_one_free(patch: Patch) -> None:
    release, count = BlockAllocator.release, itertools.count()
    patch.setattr(BlockAllocator, "release", lambda self, block: None if next(count) == 20 else release(self, block))


@mutant
def free_one_twice(patch: Patch) -> None:
    def close(self: KvCacheManager, sequence_id: int) -> None:
        table = self.table(sequence_id)
        whole(self, sequence_id)
        self.allocators[0]._free.update(dict.fromkeys(block for block in table.groups[0][-1:] if block is not None))

    whole = KvCacheManager.close
    patch.setattr(KvCacheManager, "close", close)


@mutant
def drop_the_salt(patch: Patch) -> None:
    whole = prefix_hash.root_hash
    patch.setattr(prefix_hash, "root_hash", lambda salt: whole(""))


@mutant
def hash_without_the_parent(patch: Patch) -> None:
    whole = prefix_hash.block_hash
    patch.setattr(prefix_hash, "block_hash", lambda parent, token_ids: whole(b"", token_ids))


@mutant
def reuse_a_stale_block(patch: Patch) -> None:
    def allocate(self: BlockAllocator, after: int | None = None) -> int:
        if self._free or not self._cached:
            return whole(self, after)
        block, _ = self._cached.popitem(last=False)  # evicted, but it can still be found
        self._references[block] = 1
        return block

    whole = BlockAllocator.allocate
    patch.setattr(BlockAllocator, "allocate", allocate)
    patch.setattr(BlockAllocator, "check", lambda self: None)


@mutant
def publish_before_it_is_computed(patch: Patch) -> None:
    def commit(
        self: KvCacheManager, sequence_id: int, token_ids: Sequence[int], num_computed: int, num_cacheable_tokens: int | None
    ) -> None:
        ahead = min(len(token_ids), len(self.table(sequence_id).groups[0]) * self.block_size)
        whole(self, sequence_id, token_ids, max(num_computed, ahead // self.block_size * self.block_size))

    whole = KvCacheManager.commit
    patch.setattr(KvCacheManager, "commit", commit)


@mutant
def rollback_off_by_one(patch: Patch) -> None:
    def preempt(self: Scheduler, entry: ScheduledRequest) -> None:
        whole(self, entry)
        for sequence in entry.sequences:
            hashes = self.kv.block_hashes(entry.salt, sequence.token_ids)
            entry.hashes[sequence.id] = [*hashes[1:], *hashes[:1]] if len(hashes) > 1 else hashes

    whole = Scheduler._preempt
    patch.setattr(Scheduler, "_preempt", preempt)


@mutant
def hit_one_token_too_many(patch: Patch) -> None:
    whole = KvCacheManager.open
    patch.setattr(KvCacheManager, "open", lambda self, *a: (found := whole(self, *a)) + (1 if found else 0))


@mutant
def write_to_a_shared_block(patch: Patch) -> None:
    patch.setattr(BlockAllocator, "shared", lambda self, block: False)


@mutant
def forget_the_copy(patch: Patch) -> None:
    whole = KvCacheManager.reserve
    patch.setattr(KvCacheManager, "reserve", lambda self, *a: None if whole(self, *a) is None else [])


@mutant
def window_released_too_early(patch: Patch) -> None:
    whole = KvGroup.first_live_block
    patch.setattr(
        KvGroup, "first_live_block", lambda self, computed, size: whole(self, computed + size, size) if self.window else 0
    )


@mutant
def a_hit_that_one_group_lacks(patch: Patch) -> None:
    patch.setattr(KvCacheManager, "_last_lacking", lambda self, group, allocator, hashes, count: -1)


@mutant
def fork_without_holding(patch: Patch) -> None:
    def fork(self: KvCacheManager, parent_id: int, child_id: int) -> None:
        whole(self, parent_id, child_id)
        for blocks, allocator in zip(self.table(child_id).groups, self.allocators, strict=True):
            for block in blocks[:1]:
                if block is not None:
                    allocator.release(block)

    whole = KvCacheManager.fork
    patch.setattr(KvCacheManager, "fork", fork)


@mutant
def commit_one_token_short(patch: Patch) -> None:
    def commit(self: Scheduler, result: StepResult) -> CommitResult:
        long = [self.sequence(row.sequence_id) for row in self._planned if len(row.token_ids) > 3 and not row.num_logits]
        committed = whole(self, result)
        for sequence in long[:1]:
            sequence.num_computed += 1
        return committed

    whole = Scheduler.commit
    patch.setattr(Scheduler, "commit", commit)


@mutant
def publish_what_was_rejected(patch: Patch) -> None:
    def commit(
        self: KvCacheManager, sequence_id: int, token_ids: Sequence[int], num_computed: int, num_cacheable_tokens: int | None
    ) -> None:
        # Blocks that a rejected draft has filled up: a scheduler that commits whole rows lets others find them.
        spare = num_computed % self.block_size and self.block_size - num_computed % self.block_size
        if spare and len(self.table(sequence_id).groups[0]) * self.block_size >= num_computed + spare:
            token_ids, num_computed = [*token_ids[:num_computed], *[1] * spare], num_computed + spare
        whole(self, sequence_id, token_ids, num_computed)

    whole = KvCacheManager.commit
    patch.setattr(KvCacheManager, "commit", commit)


@mutant
def keep_one_token_of_the_draft_too_many(patch: Patch) -> None:
    def commit(self: Scheduler, result: StepResult) -> CommitResult:
        given = {c.parent: len(c.token_ids) - 1 for c in result.continuations if c.finish is None}
        rows = [self.sequence(row.sequence_id) for row in self._planned]
        wrong = [s for s in rows if s.draft and given.get(s.id, len(s.draft)) < len(s.draft)]
        committed = whole(self, result)
        for sequence in wrong[:1]:
            sequence.token_ids.append(1)
            sequence.num_computed += 1
        return committed

    whole = Scheduler.commit
    patch.setattr(Scheduler, "commit", commit)


@mutant
def sample_a_draft_one_position_late(patch: Patch) -> None:
    def view(sequence: sequences.Sequence, index: int, node: int = -1) -> SamplingRow:
        return whole(sequence, index, sequence.draft.parents[node] if node >= 0 else -1)

    whole = acceptor._view
    patch.setattr(acceptor, "_view", view)


@mutant
def go_on_after_a_wrong_guess(patch: Patch) -> None:
    def sample(self: Sampler, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        # The token after a guess is judged by what the guess was, not by what was drawn before it.
        tokens = whole(self, logits_RV, rows)
        for i in range(1, len(rows)):
            follows = len(rows[i].token_ids) == len(rows[i - 1].token_ids) + 1
            if follows and rows[i].params is rows[i - 1].params and rows[i].token_ids[:-1] == [*rows[i - 1].token_ids]:
                tokens[i - 1] = SampledToken(rows[i].token_ids[-1])
        return tokens

    whole = Sampler.sample
    patch.setattr(Sampler, "sample", sample)


@mutant
def leave_an_accepted_path_where_it_was_computed(patch: Patch) -> None:
    patch.setattr(KvCacheManager, "slot_moves", lambda self, sequence_id, begin, path: [])


@mutant
def move_a_path_back_to_front(patch: Patch) -> None:
    whole = KvCacheManager.slot_moves
    patch.setattr(KvCacheManager, "slot_moves", lambda self, *a: whole(self, *a)[::-1])


@mutant
def move_one_group_only(patch: Patch) -> None:
    whole = KvCacheManager.slot_moves
    patch.setattr(KvCacheManager, "slot_moves", lambda self, *a: [move for move in whole(self, *a) if move.group == 0])


@mutant
def roll_back_one_slot_short(patch: Patch) -> None:
    whole = KvCacheManager.slot_moves
    patch.setattr(KvCacheManager, "slot_moves", lambda self, sequence_id, begin, path: whole(self, sequence_id, begin + 1, path))


@mutant
def one_wrong_bit_in_a_tree(patch: Patch) -> None:
    def advance(self: Scheduler, entry: ScheduledRequest, builder: PlanBuilder) -> None:
        whole(self, entry, builder)
        for i, row in enumerate(builder._rows.get(entry, ())):
            if row.tree and row.tree[-1] > 0:  # its last token sees its parent's parent's children, and not its parent
                builder._rows[entry][i] = dataclasses.replace(row, tree=(*row.tree[:-1], row.tree[-1] - 1))

    whole = Scheduler._advance
    patch.setattr(Scheduler, "_advance", advance)


@mutant
def follow_the_first_child_whatever_was_drawn(patch: Patch) -> None:
    def child(self: Draft, parent: int, token_id: int) -> int | None:
        return next((i for i, p in enumerate(self.parents) if p == parent), None)

    patch.setattr(Draft, "find_child", child)


@mutant
def take_the_siblings_for_ancestors(patch: Patch) -> None:
    patch.setattr(acceptor, "_path_to", lambda draft, node: list(draft.token_ids[: draft.depths[node]]))


@mutant
def publish_what_left_early(patch: Patch) -> None:
    whole = KvCacheManager.commit
    patch.setattr(KvCacheManager, "commit", lambda self, *arguments: whole(self, *arguments[:3]))


@mutant
def forget_who_left_early(patch: Patch) -> None:
    def note(self: Sequence_, row: RowPlan, depth: int | None) -> None:
        whole(self, row, depth)
        self.early.clear()

    whole = Sequence_.record_exits
    patch.setattr(Sequence_, "record_exits", note)


@mutant
def share_blocks_between_depths(patch: Patch) -> None:
    def add(self: Scheduler, request: Request) -> ScheduledRequest:
        entry = whole(self, request)
        entry.salt = entry.salt.removeprefix(f"depth:{request.exit_layer}/")
        return entry

    whole = Scheduler.add
    patch.setattr(Scheduler, "add", add)


@mutant
def share_with_a_fork_who_left_early(patch: Patch) -> None:
    def fork(self: Scheduler, parent: Sequence_) -> Sequence_:
        child = whole(self, parent)
        child.early = parent.early
        return child

    whole = Scheduler._fork
    patch.setattr(Scheduler, "_fork", fork)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_oracle_kills(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    # A wrong token, a broken invariant or a crash: any of them tells.
    assert any(not survives(seed) for seed in range(12))


def survives(seed: int) -> bool:
    """Every other seed in larger steps and with fewer kinds of requests, so that more of them share prompts."""
    try:
        World(seed, frozenset(FEATURES) - ({"chunking", "salt", "beam"} if seed % 2 else set())).run(200)
    except Exception:
        return False
    return True


def test_without_a_mutant_nothing_is_raised() -> None:
    for seed in range(3):
        assert World(seed, frozenset(FEATURES)).run(200).wrong == 0
