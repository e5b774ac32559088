"""Negative controls: the oracle catches each planted fault within a few seeds."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
from torch import Tensor

from hasten.core.draft import Draft
from hasten.core.plan import CommitResult, RowPlan
from hasten.core.result import StepResult
from hasten.engine import sampling_rows, verification
from hasten.engine.prefix_blocks import PrefixBlocks
from hasten.engine.sampling_rows import NO_NODE
from hasten.kv import prefix_hash
from hasten.kv.allocator import BlockAllocator
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.group import KvGroup
from hasten.kv.pins import Pin, PinTable
from hasten.sampling.row import SamplingRow
from hasten.sampling.sampler import SampledToken, Sampler
from hasten.scheduling import scheduler
from hasten.scheduling.plan_builder import PlanBuilder
from hasten.scheduling.scheduler import Scheduler
from hasten.scheduling.sequence import ScheduledRequest
from hasten.scheduling.sequence import Sequence as ScheduledSequence

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
        table = self._tables[sequence_id]
        original(self, sequence_id)
        self.allocators[0]._free.update(dict.fromkeys(block for block in table.groups[0][-1:] if block is not None))

    original = KvCacheManager.close
    patch.setattr(KvCacheManager, "close", close)


@mutant
def drop_the_salt(patch: Patch) -> None:
    original = prefix_hash.root_hash
    patch.setattr(prefix_hash, "root_hash", lambda salt: original(""))


@mutant
def hash_without_the_parent(patch: Patch) -> None:
    original = prefix_hash.hash_block
    patch.setattr(prefix_hash, "hash_block", lambda parent, token_ids: original(b"", token_ids))


@mutant
def reuse_a_stale_block(patch: Patch) -> None:
    def allocate(self: BlockAllocator, after: int | None = None) -> int:
        if self._free or not self._cached:
            return original(self, after)
        block, _ = self._cached.popitem(last=False)  # evicted, but it can still be found
        self._references[block] = 1
        return block

    original = BlockAllocator.allocate
    patch.setattr(BlockAllocator, "allocate", allocate)
    patch.setattr(BlockAllocator, "check", lambda self: None)


@mutant
def publish_before_it_is_computed(patch: Patch) -> None:
    def commit(
        self: KvCacheManager, sequence_id: int, token_ids: Sequence[int], num_computed_tokens: int, num_cacheable_tokens: int | None
    ) -> None:
        ahead = min(len(token_ids), len(self._tables[sequence_id].groups[0]) * self.block_size)
        original(self, sequence_id, token_ids, max(num_computed_tokens, ahead // self.block_size * self.block_size))

    original = KvCacheManager.commit
    patch.setattr(KvCacheManager, "commit", commit)


@mutant
def rollback_off_by_one(patch: Patch) -> None:
    def preempt(self: Scheduler, scheduled: ScheduledRequest) -> None:
        original(self, scheduled)
        for sequence in scheduled.sequences:
            hashes = self.kv.block_hashes(scheduled.salt, sequence.token_ids)
            sequence.block_hashes = [*hashes[1:], *hashes[:1]] if len(hashes) > 1 else hashes

    original = Scheduler._preempt
    patch.setattr(Scheduler, "_preempt", preempt)


@mutant
def hit_one_token_too_many(patch: Patch) -> None:
    original = KvCacheManager.open
    patch.setattr(KvCacheManager, "open", lambda self, *a: (cached := original(self, *a)) + (1 if cached else 0))


@mutant
def write_to_a_shared_block(patch: Patch) -> None:
    patch.setattr(BlockAllocator, "is_shared", lambda self, block: False)


@mutant
def forget_the_copy(patch: Patch) -> None:
    original = KvCacheManager.reserve
    patch.setattr(KvCacheManager, "reserve", lambda self, *a: None if original(self, *a) is None else [])


@mutant
def window_released_too_early(patch: Patch) -> None:
    original = KvGroup.first_live_block
    patch.setattr(
        KvGroup, "first_live_block", lambda self, computed, size: original(self, computed + size, size) if self.window else 0
    )


@mutant
def hit_a_prefix_that_one_group_lacks(patch: Patch) -> None:
    patch.setattr(KvCacheManager, "_last_missing", lambda self, group, allocator, hashes, count: -1)


@mutant
def fork_without_holding(patch: Patch) -> None:
    def fork(self: KvCacheManager, parent_id: int, child_id: int) -> None:
        original(self, parent_id, child_id)
        for blocks, allocator in zip(self._tables[child_id].groups, self.allocators, strict=True):
            for block in blocks[:1]:
                if block is not None:
                    allocator.release(block)

    original = KvCacheManager.fork
    patch.setattr(KvCacheManager, "fork", fork)


@mutant
def commit_one_token_short(patch: Patch) -> None:
    def commit(self: Scheduler, result: StepResult) -> CommitResult:
        long = [self.sequence(row.sequence_id) for row in self._planned if len(row.token_ids) > 3 and not row.num_logits]
        committed = original(self, result)
        for sequence in long[:1]:
            sequence.num_computed_tokens += 1
        return committed

    original = Scheduler.commit
    patch.setattr(Scheduler, "commit", commit)


@mutant
def publish_rejected_tokens(patch: Patch) -> None:
    def commit(
        self: KvCacheManager, sequence_id: int, token_ids: Sequence[int], num_computed_tokens: int, num_cacheable_tokens: int | None
    ) -> None:
        # A rejected draft fills the last block: a scheduler that commits all tokens of a row would publish it.
        num_rejected = -num_computed_tokens % self.block_size
        num_filled = num_computed_tokens + num_rejected
        if num_rejected and len(self._tables[sequence_id].groups[0]) * self.block_size >= num_filled:
            token_ids, num_computed_tokens = [*token_ids[:num_computed_tokens], *[1] * num_rejected], num_filled
        original(self, sequence_id, token_ids, num_computed_tokens)

    original = KvCacheManager.commit
    patch.setattr(KvCacheManager, "commit", commit)


@mutant
def keep_one_token_of_the_draft_too_many(patch: Patch) -> None:
    def commit(self: Scheduler, result: StepResult) -> CommitResult:
        accepted = {c.parent: len(c.token_ids) - 1 for c in result.continuations if c.finish is None}
        sequences = [self.sequence(row.sequence_id) for row in self._planned]
        wrong = [s for s in sequences if s.draft and accepted.get(s.id, len(s.draft)) < len(s.draft)]
        committed = original(self, result)
        for sequence in wrong[:1]:
            sequence.token_ids.append(1)
            sequence.num_computed_tokens += 1
        return committed

    original = Scheduler.commit
    patch.setattr(Scheduler, "commit", commit)


@mutant
def sample_a_draft_one_position_late(patch: Patch) -> None:
    def sampling_row(sequence: ScheduledSequence, output_index: int, node: int = NO_NODE) -> SamplingRow:
        return original(sequence, output_index, NO_NODE if node == NO_NODE else sequence.draft.parents[node])

    original = verification.sampling_row
    patch.setattr(verification, "sampling_row", sampling_row)


@mutant
def accept_a_wrong_draft_token(patch: Patch) -> None:
    def sample(self: Sampler, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        # Every draft token counts as sampled, so verification accepts it.
        tokens = original(self, logits_RV, rows)
        for i in range(1, len(rows)):
            follows = len(rows[i].token_ids) == len(rows[i - 1].token_ids) + 1
            if follows and rows[i].params is rows[i - 1].params and rows[i].token_ids[:-1] == [*rows[i - 1].token_ids]:
                tokens[i - 1] = SampledToken(rows[i].token_ids[-1])
        return tokens

    original = Sampler.sample
    patch.setattr(Sampler, "sample", sample)


@mutant
def leave_an_accepted_path_in_place(patch: Patch) -> None:
    patch.setattr(KvCacheManager, "slot_moves", lambda self, sequence_id, begin, path: [])


@mutant
def move_a_path_back_to_front(patch: Patch) -> None:
    original = KvCacheManager.slot_moves
    patch.setattr(KvCacheManager, "slot_moves", lambda self, *a: original(self, *a)[::-1])


@mutant
def move_one_group_only(patch: Patch) -> None:
    original = KvCacheManager.slot_moves
    patch.setattr(KvCacheManager, "slot_moves", lambda self, *a: [move for move in original(self, *a) if move.group == 0])


@mutant
def roll_back_one_slot_short(patch: Patch) -> None:
    original = KvCacheManager.slot_moves
    patch.setattr(KvCacheManager, "slot_moves", lambda self, sequence_id, begin, path: original(self, sequence_id, begin + 1, path))


@mutant
def wrong_parent_in_a_tree(patch: Patch) -> None:
    def schedule(self: Scheduler, scheduled: ScheduledRequest, builder: PlanBuilder) -> None:
        original(self, scheduled, builder)
        for i, (row, copies) in enumerate(builder._rows.get(scheduled, ())):
            if row.tree and row.tree[-1] > 0:  # the last token attends to the children of its grandparent, not to its parent
                tree = (*row.tree[:-1], row.tree[-1] - 1)
                builder._rows[scheduled][i] = dataclasses.replace(row, tree=tree), copies

    original = Scheduler._schedule
    patch.setattr(Scheduler, "_schedule", schedule)


@mutant
def follow_the_first_child_of_any_token(patch: Patch) -> None:
    def find_child(self: Draft, parent: int, token_id: int) -> int | None:
        return next((i for i, p in enumerate(self.parents) if p == parent), None)

    patch.setattr(Draft, "find_child", find_child)


@mutant
def take_the_siblings_for_ancestors(patch: Patch) -> None:
    patch.setattr(sampling_rows, "draft_path", lambda draft, node: list(draft.token_ids[: draft.depths[node]]))


@mutant
def publish_tokens_that_exited_early(patch: Patch) -> None:
    original = KvCacheManager.commit
    patch.setattr(KvCacheManager, "commit", lambda self, *arguments: original(self, *arguments[:3]))


@mutant
def forget_which_tokens_exited_early(patch: Patch) -> None:
    def record_exit(self: ScheduledSequence, row: RowPlan, exit_layer: int | None) -> None:
        original(self, row, exit_layer)
        self.token_exit_layers.clear()

    original = ScheduledSequence.record_exit
    patch.setattr(ScheduledSequence, "record_exit", record_exit)


@mutant
def share_blocks_between_exit_layers(patch: Patch) -> None:
    original = prefix_hash.cache_salt
    patch.setattr(scheduler, "cache_salt", lambda tenant, exit_layer: original(tenant, None))


@mutant
def share_exit_layers_with_a_fork(patch: Patch) -> None:
    def fork(self: Scheduler, parent: ScheduledSequence) -> ScheduledSequence:
        child = original(self, parent)
        child.token_exit_layers = parent.token_exit_layers
        return child

    original = Scheduler._fork
    patch.setattr(Scheduler, "_fork", fork)


@mutant
def take_the_salt_from_the_file(patch: Patch) -> None:
    savers: dict[tuple[int, ...], str] = {}

    def hold(self: PrefixBlocks, token_ids: Sequence[int], tenant: str) -> AbstractContextManager[list[list[int]]]:
        savers[tuple(token_ids)] = tenant
        return original_hold(self, token_ids, tenant)

    def insert(self: PrefixBlocks, token_ids: Sequence[int], tenant: str, write: Callable[..., None]) -> int:
        return original_insert(self, token_ids, savers[tuple(token_ids)], write)

    original_hold, original_insert = PrefixBlocks.hold, PrefixBlocks.insert
    patch.setattr(PrefixBlocks, "hold", hold)
    patch.setattr(PrefixBlocks, "insert", insert)


@mutant
def publish_dead_blocks_of_a_loaded_window(patch: Patch) -> None:
    def insert(self: KvCacheManager, salt: str, token_ids: Sequence[int], write: Callable[..., None]) -> int:
        live = [group.live_blocks(len(token_ids) // self.block_size, self.block_size) for group in self.groups]

        def write_live(new: Sequence[Mapping[int, int]]) -> None:
            write([{i: block for i, block in blocks.items() if i in own} for blocks, own in zip(new, live, strict=True)])

        with pytest.MonkeyPatch.context() as inner:  # blocks that no file has
            inner.setattr(KvGroup, "live_blocks", lambda group, num_blocks, block_size: range(num_blocks))
            return original(self, salt, token_ids, write_live)

    original = KvCacheManager.insert_prefix
    patch.setattr(KvCacheManager, "insert_prefix", insert)


@mutant
def load_blocks_in_another_order(patch: Patch) -> None:
    def insert(self: KvCacheManager, salt: str, token_ids: Sequence[int], write: Callable[..., None]) -> int:
        def write_reversed(new: Sequence[Mapping[int, int]]) -> None:
            write([dict(zip(blocks, reversed(blocks.values()), strict=True)) for blocks in new])

        return original(self, salt, token_ids, write_reversed)

    original = KvCacheManager.insert_prefix
    patch.setattr(KvCacheManager, "insert_prefix", insert)


@mutant
def save_one_block_for_all(patch: Patch) -> None:
    @contextmanager
    def hold(self: PrefixBlocks, token_ids: Sequence[int], tenant: str) -> Iterator[list[list[int]]]:
        with original(self, token_ids, tenant) as blocks:
            yield [own[:1] * len(own) for own in blocks]

    original = PrefixBlocks.hold
    patch.setattr(PrefixBlocks, "hold", hold)


@mutant
def keep_a_loaded_block_held(patch: Patch) -> None:
    def insert(self: KvCacheManager, salt: str, token_ids: Sequence[int], write: Callable[..., None]) -> int:
        num_new = original(self, salt, token_ids, write)
        block = self.allocators[0].find(next(iter(self.allocators[0]._block_of), b""))
        if block is not None:
            self.allocators[0].hold(block)
        return num_new

    original = KvCacheManager.insert_prefix
    patch.setattr(KvCacheManager, "insert_prefix", insert)


@mutant
def remove_a_prefix_that_runs(patch: Patch) -> None:
    def remove(self: KvCacheManager, salt: str, token_ids: Sequence[int]) -> int:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(BlockAllocator, "is_held", lambda allocator, block: False)
            return original(self, salt, token_ids)

    original = KvCacheManager.remove_prefix
    patch.setattr(KvCacheManager, "remove_prefix", remove)


@mutant
def count_pinned_blocks_as_free(patch: Patch) -> None:
    def hold(self: PinTable, pin: Pin) -> None:
        self._pins[pin.block_hash] = pin
        self.counts["set"] += 1

    # The consistency checks would notice, so they are off: the pinned prefix itself has to be missed.
    patch.setattr(PinTable, "_hold", hold)
    patch.setattr(PinTable, "_end", lambda self, pin, event: self._pins.pop(pin.block_hash))
    patch.setattr(PinTable, "check", lambda self: None)


@mutant
def let_no_pin_expire(patch: Patch) -> None:
    patch.setattr(PinTable, "advance", lambda self, now: setattr(self, "now", now))


@mutant
def leak_the_blocks_of_a_dropped_pin(patch: Patch) -> None:
    def drop_one(self: PinTable) -> bool:
        return any(self._pins.pop(pin.block_hash) is pin for pin in list(self._pins.values())[:1])

    patch.setattr(PinTable, "drop_one", drop_one)
    patch.setattr(PinTable, "check", lambda self: None)
    patch.setattr(PinTable, "references", lambda self, group: Counter(b for p in self._pins.values() for b in p.blocks[group]))


@mutant
def never_drop_a_pin(patch: Patch) -> None:
    patch.setattr(PinTable, "drop_one", lambda self: False)


@mutant
def forget_the_window_of_a_pinned_prefix(patch: Patch) -> None:
    def find(self: PinTable, hashes: Sequence[bytes]) -> tuple[tuple[int, ...], ...] | None:
        blocks = original(self, hashes)
        return blocks and (blocks[0], *(() for _ in blocks[1:]))

    original = PinTable._find
    patch.setattr(PinTable, "_find", find)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_the_oracle_catches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    # A wrong token, a broken invariant and a crash all count.
    assert any(not survives(seed) for seed in range(12))


def survives(seed: int) -> bool:
    """Odd seeds take larger steps and have fewer kinds of requests, so that more requests share prompts."""
    try:
        World(seed, frozenset(FEATURES) - ({"chunking", "salt", "beam"} if seed % 2 else set())).run(200)
    except Exception:
        return False
    return True


def test_without_a_mutant_no_world_fails() -> None:
    for seed in range(3):
        assert World(seed, frozenset(FEATURES)).run(200).wrong == 0
