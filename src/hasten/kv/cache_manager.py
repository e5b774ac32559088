"""Which sequence holds which blocks, over all KV groups: tables, prefix hits, copy-on-write, window release.

Plain integers: it knows no tensor and no schedule. A sequence is *open* from its first block to ``close``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.core.plan import BlockCopy, SlotMove
from hasten.kv.allocator import BlockAllocator
from hasten.kv.group import KvGroup
from hasten.kv.prefix_hash import extend_hashes


@dataclass(slots=True)
class BlockTable:
    """One sequence's blocks: ``groups[g][i]`` holds positions ``[i * block_size, (i + 1) * block_size)``; None fell out."""

    salt: str
    groups: list[list[int | None]]
    hashes: list[bytes] = field(default_factory=list)  # of every full block of the tokens seen so far
    num_published: int = 0
    num_released: list[int] = field(default_factory=list)  # per group: leading blocks that fell out of the window
    frozen: tuple[tuple[int | None, ...], ...] | None = None  # ``groups`` as a plan takes them; None since they changed


class KvCacheManager:
    def __init__(self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, *, keep_cached: bool = True) -> None:
        """``num_blocks`` in every group. ``keep_cached``: keep computed blocks for later requests (the prefix cache)."""
        self.groups = tuple(groups)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.allocators = tuple(BlockAllocator(num_blocks, keep_cached=keep_cached) for _ in groups)
        self._windowed = [(i, group, self.allocators[i]) for i, group in enumerate(self.groups) if group.window is not None]
        self._tables: dict[int, BlockTable] = {}
        self._pending: dict[bytes, int] = {}  # hash of a block that an open sequence is about to compute -> that sequence

    def is_open(self, sequence_id: int) -> bool:
        return sequence_id in self._tables

    def table(self, sequence_id: int) -> BlockTable:
        return self._tables[sequence_id]

    def block_tables(self, sequence_id: int) -> tuple[tuple[int | None, ...], ...]:
        """The block table of each group; the same object as long as it has not changed."""
        table = self._tables[sequence_id]
        if table.frozen is None:
            table.frozen = tuple(tuple(blocks) for blocks in table.groups)
        return table.frozen

    def max_blocks(self, num_tokens: int, max_num_batched_tokens: int) -> int:
        """The most blocks that a sequence of ``num_tokens`` holds in any one group."""
        return max(group.max_blocks(num_tokens, self.block_size, max_num_batched_tokens) for group in self.groups)

    def block_hashes(self, salt: str, token_ids: Sequence[int]) -> list[bytes]:
        """The hashes of the full blocks whose hit would still leave one token to compute."""
        hashes: list[bytes] = []
        extend_hashes(hashes, salt, token_ids[:-1], self.block_size)
        return hashes

    def match_prefix(self, hashes: Sequence[bytes]) -> int:
        """The longest prefix, in blocks, of which every group still holds all that its next query can see."""
        best = len(hashes)
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            if group.window is None:
                best = next((i for i in range(best) if allocator.find(hashes[i]) is None), best)
        windowed = [(g, a) for g, a in zip(self.groups, self.allocators, strict=True) if g.window is not None]
        while (lacking := max((self._last_lacking(g, a, hashes, best) for g, a in windowed), default=-1)) >= 0:
            best = lacking  # every longer prefix needs that block, or one after it
        return best

    def _last_lacking(self, group: KvGroup, allocator: BlockAllocator, hashes: Sequence[bytes], count: int) -> int:
        """The last block that is gone of those which the query after ``count`` blocks sees; -1 if the group holds them all."""
        first = group.first_live_block(count * self.block_size, self.block_size)
        return next((i for i in range(count - 1, first - 1, -1) if allocator.find(hashes[i]) is None), -1)

    def prefix_in_flight(self, hashes: Sequence[bytes]) -> bool:
        """Whether an open sequence is about to compute the first block after the longest match."""
        count = self.match_prefix(hashes)
        return count < len(hashes) and hashes[count] in self._pending

    def fits(self, hashes: Sequence[bytes], num_tokens: int, max_num_batched_tokens: int, spare: int) -> bool:
        """Whether a sequence of ``num_tokens`` with these block hashes could get its blocks now and leave ``spare`` of them."""
        count = self.match_prefix(hashes)
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            first = group.first_live_block(count * self.block_size, self.block_size)
            found = [allocator.find(block_hash) for block_hash in hashes[first:count]]
            shared = sum(allocator.held(block) for block in found if block is not None)
            total = -(-num_tokens // self.block_size) - first
            needed = min(total, group.max_blocks(num_tokens, self.block_size, max_num_batched_tokens)) - shared
            if needed + spare > allocator.num_available:
                return False
        return True

    def open(self, sequence_id: int, salt: str, hashes: Sequence[bytes]) -> int:
        """Start a sequence on the longest cached prefix; returns the tokens that need no computing.

        Its other full blocks are announced, so that later sequences with the same prefix can wait for them.
        """
        assert sequence_id not in self._tables
        count = self.match_prefix(hashes)
        tables: list[list[int | None]] = []
        released: list[int] = []
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            first = group.first_live_block(count * self.block_size, self.block_size)
            blocks: list[int | None] = [None] * first
            for block_hash in hashes[first:count]:
                block = allocator.find(block_hash)
                assert block is not None
                allocator.hold(block)
                blocks.append(block)
            tables.append(blocks)
            released.append(first)
        table = BlockTable(salt, tables, list(hashes), count, released)
        self._tables[sequence_id] = table
        for block_hash in hashes[count:]:
            self._pending.setdefault(block_hash, sequence_id)
        return count * self.block_size

    def reserve(self, sequence_id: int, start: int, stop: int) -> list[BlockCopy] | None:
        """Make positions ``[start, stop)`` writable: new blocks, and a copy of a shared block that ``start`` falls into.

        None, and nothing changed, if a group has too few blocks.
        """
        table = self._tables[sequence_id]
        first, last = start // self.block_size, -(-stop // self.block_size)
        ready = True
        for blocks, allocator in zip(table.groups, self.allocators, strict=True):
            own = blocks[first] if first < len(blocks) else None
            needed = max(0, last - len(blocks)) + (own is not None and allocator.shared(own))
            if needed:
                ready = False
                if needed > allocator.num_available:
                    return None
        copies: list[BlockCopy] = []
        if ready:  # most steps of a sequence that decodes
            return copies
        table.frozen = None
        for index, (blocks, allocator) in enumerate(zip(table.groups, self.allocators, strict=True)):
            own = blocks[first] if first < len(blocks) else None
            if own is not None and allocator.shared(own):
                target = allocator.allocate()
                allocator.release(own)
                blocks[first] = target
                copies.append(BlockCopy(index, own, target))
            while len(blocks) < last:
                blocks.append(allocator.allocate(after=blocks[-1] if blocks else None))
        return copies

    def slot_moves(self, sequence_id: int, begin: int, path: Sequence[int]) -> list[SlotMove]:
        """Slots ``begin + path[i]`` to ``begin + i``, in an order in which none is written before it is read. ``path`` rises."""
        size = self.block_size
        return [
            SlotMove(group, (_held(blocks, source // size), source % size), (_held(blocks, target // size), target % size))
            for target, source in enumerate((begin + node for node in path), begin)
            if source != target
            for group, blocks in enumerate(self._tables[sequence_id].groups)
        ]

    def commit(
        self, sequence_id: int, token_ids: Sequence[int], num_computed: int, num_cacheable_tokens: int | None = None
    ) -> None:
        """The first ``num_computed`` tokens are in their blocks: publish the full ones, let go of what the window left behind.

        Blocks with tokens from ``num_cacheable_tokens`` on are nobody else's: keys and values of some layers are not what they say.
        """
        table = self._tables[sequence_id]
        full = (num_computed if num_cacheable_tokens is None else min(num_computed, num_cacheable_tokens)) // self.block_size
        if full > table.num_published:
            self._publish(sequence_id, table, token_ids, full)
        if num_cacheable_tokens is not None:
            self._retract(sequence_id, table, max(table.num_published, num_cacheable_tokens // self.block_size))
        for index, group, allocator in self._windowed:
            live = min(group.first_live_block(num_computed, self.block_size), len(table.groups[index]))
            for i in range(table.num_released[index], live):
                block = table.groups[index][i]
                table.groups[index][i] = table.frozen = None
                table.num_released[index] = i + 1
                if block is not None:
                    allocator.release(block)

    def _publish(self, sequence_id: int, table: BlockTable, token_ids: Sequence[int], full: int) -> None:
        """The first ``full`` blocks are computed: they can be found from now on, and nobody waits for them any more."""
        if full > len(table.hashes):
            extend_hashes(table.hashes, table.salt, token_ids[: full * self.block_size], self.block_size)
        for i in range(table.num_published, full):
            for blocks, allocator in zip(table.groups, self.allocators, strict=True):
                block = blocks[i]
                if block is not None:
                    allocator.publish(block, table.hashes[i])
            self._settle(table.hashes[i], sequence_id)
        table.num_published = full

    def _retract(self, sequence_id: int, table: BlockTable, count: int) -> None:
        """Blocks from ``count`` on will never be there for others: nobody is to wait for them."""
        for block_hash in table.hashes[count:]:
            self._settle(block_hash, sequence_id)
        del table.hashes[count:]

    def fork(self, parent_id: int, child_id: int) -> None:
        """The child shares every block of the parent until one of them writes."""
        parent = self._tables[parent_id]
        for blocks, allocator in zip(parent.groups, self.allocators, strict=True):
            for block in blocks:
                if block is not None:
                    allocator.hold(block)
        self._tables[child_id] = BlockTable(
            parent.salt,
            [list(blocks) for blocks in parent.groups],
            list(parent.hashes),
            parent.num_published,
            list(parent.num_released),
        )

    def close(self, sequence_id: int) -> None:
        """Release everything the sequence holds. Its last blocks become the first to be evicted."""
        table = self._tables.pop(sequence_id)
        for blocks, allocator in zip(table.groups, self.allocators, strict=True):
            for block in reversed(blocks):
                if block is not None:
                    allocator.release(block)
        for block_hash in table.hashes[table.num_published :]:
            self._settle(block_hash, sequence_id)

    def discard(self, sequence_id: int) -> None:
        """``close``, and make sure that no later request finds these blocks."""
        for blocks, allocator in zip(self._tables[sequence_id].groups, self.allocators, strict=True):
            for block in blocks:
                if block is not None:
                    allocator.unpublish(block)
        self.close(sequence_id)

    def clear_cached(self) -> None:
        for allocator in self.allocators:
            allocator.clear_cached()

    def check(self) -> None:
        """Assert that the blocks in the tables are exactly the held ones, with the right number of holders."""
        for index, allocator in enumerate(self.allocators):
            allocator.check()
            holders: dict[int, int] = {}
            for table in self._tables.values():
                for block in table.groups[index]:
                    if block is not None:
                        holders[block] = holders.get(block, 0) + 1
            assert holders == allocator.references(), f"group {index}: tables and references differ"
        assert all(self.is_open(owner) for owner in self._pending.values()), "a closed sequence is awaited"

    def _settle(self, block_hash: bytes, sequence_id: int) -> None:
        if self._pending.get(block_hash) == sequence_id:
            del self._pending[block_hash]


def _held(blocks: Sequence[int | None], index: int) -> int:
    block = blocks[index]
    assert block is not None, "a slot that was just computed has a block"
    return block
