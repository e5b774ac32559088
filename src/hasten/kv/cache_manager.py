"""``KvCacheManager``: block tables, prefix hits, pins, copy-on-write, and release outside the window.

It handles integers and knows neither tensors nor the schedule. A sequence is open while it has a block table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hasten.core.errors import CapacityError
from hasten.core.plan import BlockCopy, SlotMove
from hasten.core.request import PrefixPin
from hasten.kv.allocator import BlockAllocator
from hasten.kv.group import KvGroup
from hasten.kv.pins import PinTable
from hasten.kv.prefix_hash import extend_hashes


@dataclass(slots=True)
class BlockTable:
    """One sequence: ``groups[g][i]`` holds positions ``[i * block_size, (i + 1) * block_size)``."""

    salt: str
    groups: list[list[int | None]]  # None: the block left the group's window
    hashes: list[bytes]  # of the leading full blocks
    num_published: int
    num_released: list[int]  # per group, leading blocks that left the window
    frozen: tuple[tuple[int | None, ...], ...] | None = None  # copy of ``groups`` for step plans; None after a change


class KvCacheManager:
    def __init__(
        self,
        groups: Sequence[KvGroup],
        num_blocks: int,
        block_size: int,
        *,
        keep_cached: bool = True,
        max_pins: int = 0,
        max_pinned_share: float = 1.0,
    ) -> None:
        """``num_blocks`` is per group. ``keep_cached``: keep blocks for later requests (the prefix cache).

        ``max_pins``: pinned prefixes at a time. ``max_pinned_share``: of the blocks, for pins.
        """
        self.groups = tuple(groups)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._keep_cached = keep_cached
        max_pins = max_pins if keep_cached else 0
        self.pins = PinTable(groups, num_blocks, block_size, max_pins=max_pins, max_pinned_share=max_pinned_share)
        self.reset()

    def reset(self) -> None:
        """Close all sequences, end all pins and free all blocks, whatever state they are in."""
        self.allocators = tuple(BlockAllocator(self.num_blocks, keep_cached=self._keep_cached) for _ in self.groups)
        self.pins.reset(self.allocators)
        self._windowed = [(i, group, self.allocators[i]) for i, group in enumerate(self.groups) if group.window is not None]
        self._tables: dict[int, BlockTable] = {}
        self._pending: dict[bytes, int] = {}  # block hash -> the open sequence that will compute the block

    def is_open(self, sequence_id: int) -> bool:
        return sequence_id in self._tables

    def block_tables(self, sequence_id: int) -> tuple[tuple[int | None, ...], ...]:
        """Return the sequence's block table of each group; the same object until the table changes."""
        table = self._tables[sequence_id]
        if table.frozen is None:
            table.frozen = tuple(tuple(blocks) for blocks in table.groups)
        return table.frozen

    def max_blocks(self, num_tokens: int, max_num_batched_tokens: int) -> int:
        """Return the peak number of blocks of a sequence of ``num_tokens``, over all groups."""
        return max(group.max_blocks(num_tokens, self.block_size, max_num_batched_tokens) for group in self.groups)

    def block_hashes(self, salt: str, token_ids: Sequence[int]) -> list[bytes]:
        """Return the hashes of the full blocks that leave at least one token to compute."""
        hashes: list[bytes] = []
        extend_hashes(hashes, salt, token_ids[:-1], self.block_size)
        return hashes

    def prefix_hash(self, salt: str, token_ids: Sequence[int]) -> bytes | None:
        """Return the hash of the last full block of the tokens, which names their pin, or None."""
        hashes: list[bytes] = []
        extend_hashes(hashes, salt, token_ids, self.block_size)
        return hashes[-1] if hashes else None

    def match_prefix(self, hashes: Sequence[bytes]) -> int:
        """Return the longest cached prefix, in blocks.

        Every group has the blocks of it that the next token attends to.
        """
        count = len(hashes)
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            if group.window is None:
                count = next((i for i in range(count) if allocator.find(hashes[i]) is None), count)
        # A longer prefix needs the last missing block or a later one.
        while (missing := max((self._last_missing(g, a, hashes, count) for _, g, a in self._windowed), default=-1)) >= 0:
            count = missing
        return count

    def _last_missing(self, group: KvGroup, allocator: BlockAllocator, hashes: Sequence[bytes], count: int) -> int:
        """Return the last missing block among those that the token after ``count`` blocks attends to, or -1."""
        first = group.first_live_block(count * self.block_size, self.block_size)
        return next((i for i in range(count - 1, first - 1, -1) if allocator.find(hashes[i]) is None), -1)

    def prefix_in_flight(self, hashes: Sequence[bytes]) -> bool:
        """Whether an open sequence will compute the first block after the longest cached prefix."""
        count = self.match_prefix(hashes)
        return count < len(hashes) and hashes[count] in self._pending

    def fits(self, hashes: Sequence[bytes], num_tokens: int, max_num_batched_tokens: int, num_spare: int) -> bool:
        """Whether a sequence of ``num_tokens`` can get its blocks and leave ``num_spare`` available."""
        count = self.match_prefix(hashes)
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            first = group.first_live_block(count * self.block_size, self.block_size)
            cached = [allocator.find(block_hash) for block_hash in hashes[first:count]]
            num_shared = sum(allocator.is_held(block) for block in cached if block is not None)
            num_blocks = -(-num_tokens // self.block_size) - first
            needed = min(num_blocks, group.max_blocks(num_tokens, self.block_size, max_num_batched_tokens)) - num_shared
            if needed + num_spare > allocator.num_available:
                return False
        return True

    def open(self, sequence_id: int, salt: str, hashes: Sequence[bytes]) -> int:
        """Start a block table with the longest cached prefix; return the prefix's length in tokens.

        The remaining blocks of ``hashes`` become pending, so that later sequences with the same prefix can wait for them.
        """
        assert sequence_id not in self._tables
        count = self.match_prefix(hashes)
        table = BlockTable(salt, [], list(hashes), count, [])
        for group, allocator in zip(self.groups, self.allocators, strict=True):
            first = group.first_live_block(count * self.block_size, self.block_size)
            blocks: list[int | None] = [None] * first
            for block_hash in hashes[first:count]:
                block = allocator.find(block_hash)
                assert block is not None
                allocator.hold(block)
                blocks.append(block)
            table.groups.append(blocks)
            table.num_released.append(first)
        self._tables[sequence_id] = table
        for block_hash in hashes[count:]:
            self._pending.setdefault(block_hash, sequence_id)
        return count * self.block_size

    def reserve(self, sequence_id: int, start: int, stop: int) -> list[BlockCopy] | None:
        """Make positions ``[start, stop)`` writable; return the copies of shared blocks that this needs.

        Return None, and change nothing, if a group has too few blocks.
        """
        table = self._tables[sequence_id]
        first, last = start // self.block_size, -(-stop // self.block_size)
        is_ready = True
        for blocks, allocator in zip(table.groups, self.allocators, strict=True):
            own = blocks[first] if first < len(blocks) else None
            needed = max(0, last - len(blocks)) + (own is not None and allocator.is_shared(own))
            if needed:
                is_ready = False
                if needed > allocator.num_available:
                    return None
        copies: list[BlockCopy] = []
        if is_ready:  # most decode steps need no block
            return copies
        table.frozen = None
        for index, (blocks, allocator) in enumerate(zip(table.groups, self.allocators, strict=True)):
            own = blocks[first] if first < len(blocks) else None
            if own is not None and allocator.is_shared(own):
                blocks[first] = target = allocator.allocate()
                allocator.release(own)
                copies.append(BlockCopy(index, own, target))
            while len(blocks) < last:
                blocks.append(allocator.allocate(after=blocks[-1] if blocks else None))
        return copies

    def slot_moves(self, sequence_id: int, begin: int, path: Sequence[int]) -> list[SlotMove]:
        """Return the moves of slots ``begin + path[i]`` to ``begin + i``.

        ``path`` ascends, so every slot is read before it is overwritten.
        """
        size = self.block_size
        return [
            SlotMove(group, (_held(blocks, source // size), source % size), (_held(blocks, target // size), target % size))
            for target, source in enumerate((begin + node for node in path), begin)
            if source != target
            for group, blocks in enumerate(self._tables[sequence_id].groups)
        ]

    def commit(
        self, sequence_id: int, token_ids: Sequence[int], num_computed_tokens: int, num_cacheable_tokens: int | None = None
    ) -> None:
        """Publish the full blocks of the computed tokens; release the blocks that left the window.

        Blocks with tokens from ``num_cacheable_tokens`` on are never published, because some layers lack their keys and values.
        """
        table = self._tables[sequence_id]
        num_full = num_computed_tokens // self.block_size
        if num_cacheable_tokens is not None:
            num_cacheable = max(table.num_published, num_cacheable_tokens // self.block_size)
            num_full = min(num_full, num_cacheable)
            self._cancel_pending(sequence_id, table.hashes[num_cacheable:])
            del table.hashes[num_cacheable:]
        if num_full > table.num_published:
            self._publish(sequence_id, table, token_ids, num_full)
        for index, group, allocator in self._windowed:
            live = min(group.first_live_block(num_computed_tokens, self.block_size), len(table.groups[index]))
            for i in range(table.num_released[index], live):
                block = table.groups[index][i]
                table.groups[index][i] = table.frozen = None
                table.num_released[index] = i + 1
                if block is not None:
                    allocator.release(block)

    def _publish(self, sequence_id: int, table: BlockTable, token_ids: Sequence[int], num_full: int) -> None:
        extend_hashes(table.hashes, table.salt, token_ids[: num_full * self.block_size], self.block_size)
        for i in range(table.num_published, num_full):
            for blocks, allocator in zip(table.groups, self.allocators, strict=True):
                block = blocks[i]
                if block is not None:
                    allocator.publish(block, table.hashes[i])
        self._cancel_pending(sequence_id, table.hashes[table.num_published : num_full])
        table.num_published = num_full

    def _cancel_pending(self, sequence_id: int, hashes: Sequence[bytes]) -> None:
        for block_hash in hashes:
            if self._pending.get(block_hash) == sequence_id:
                del self._pending[block_hash]

    def fork(self, parent_id: int, child_id: int) -> None:
        """Give the child a table that shares all blocks of the parent. A write to one copies it first."""
        parent = self._tables[parent_id]
        for blocks, allocator in zip(parent.groups, self.allocators, strict=True):
            for block in blocks:
                if block is not None:
                    allocator.hold(block)
        groups = [list(blocks) for blocks in parent.groups]
        self._tables[child_id] = BlockTable(
            parent.salt, groups, list(parent.hashes), parent.num_published, list(parent.num_released)
        )

    def close(self, sequence_id: int) -> None:
        """Release all blocks of the sequence; its last blocks are evicted first."""
        table = self._tables.pop(sequence_id)
        for blocks, allocator in zip(table.groups, self.allocators, strict=True):
            for block in reversed(blocks):
                if block is not None:
                    allocator.release(block)
        self._cancel_pending(sequence_id, table.hashes[table.num_published :])

    def discard(self, sequence_id: int) -> None:
        """Close the sequence, and remove its blocks and their pins from the prefix cache."""
        for blocks, allocator in zip(self._tables[sequence_id].groups, self.allocators, strict=True):
            for block in blocks:
                if block is not None:
                    allocator.unpublish(block)
        self.pins.unpin_blocks(self._tables[sequence_id].groups)
        self.close(sequence_id)

    def insert_prefix(self, salt: str, token_ids: Sequence[int], write: Callable[[Sequence[Mapping[int, int]]], None]) -> int:
        """Add the full blocks of ``token_ids`` to the prefix cache; return how many are new.

        Blocks of all groups count. ``write`` fills the new blocks: per group, index of the block in the prefix -> block. If it
        raises, none is published. Groups with a window get only the blocks that the token after the prefix attends to. Raises
        ``CapacityError``, and changes nothing, if running sequences and pins leave too few blocks.
        """
        hashes: list[bytes] = []
        extend_hashes(hashes, salt, token_ids, self.block_size)
        live = [group.live_blocks(len(hashes), self.block_size) for group in self.groups]
        for indices, allocator in zip(live, self.allocators, strict=True):
            found = [block for i in indices if (block := allocator.find(hashes[i])) is not None]
            num_new = len(indices) - len(found)
            num_free = allocator.num_available - sum(not allocator.is_held(block) for block in found)
            if num_new > num_free:
                raise CapacityError(
                    "the prefix does not fit the KV blocks that running requests and pins leave",
                    got=f"{num_new} blocks of {self.block_size} tokens",
                    allowed=f"up to {num_free}",
                    remedy="Wait for running requests, end pins, or raise kv_cache_memory",
                )
        tables: list[dict[int, int]] = [{} for _ in self.groups]
        new: list[dict[int, int]] = [{} for _ in self.groups]
        try:
            for indices, allocator, table, new_blocks in zip(live, self.allocators, tables, new, strict=True):
                for i in indices:
                    if (block := allocator.find(hashes[i])) is not None:
                        allocator.hold(block)
                        table[i] = block
                for i in indices:
                    if i not in table:
                        table[i] = new_blocks[i] = allocator.allocate(after=table.get(i - 1))
            write(new)
            for allocator, new_blocks in zip(self.allocators, new, strict=True):
                for i, block in new_blocks.items():
                    allocator.publish(block, hashes[i])
        finally:
            for allocator, table in zip(self.allocators, tables, strict=True):
                for i in sorted(table, reverse=True):  # the last blocks are evicted first
                    allocator.release(table[i])
        return sum(map(len, new))

    def remove_prefix(self, salt: str, token_ids: Sequence[int]) -> int:
        """Free the cached full blocks of ``token_ids`` and end their pins; return how many blocks.

        Blocks that a sequence or the pin of a longer prefix holds stay.
        """
        hashes: list[bytes] = []
        extend_hashes(hashes, salt, token_ids, self.block_size)
        for block_hash in hashes:
            self.pins.unpin(block_hash)
        num_freed = 0
        for allocator in self.allocators:
            for block_hash in hashes:
                block = allocator.find(block_hash)
                if block is not None and not allocator.is_held(block):
                    allocator.free_cached(block)
                    num_freed += 1
        return num_freed

    def set_pins(
        self, sequence_id: int, pins: Sequence[PrefixPin], num_computed_tokens: int
    ) -> tuple[list[PrefixPin], list[PrefixPin]]:
        """Set the pins whose full blocks are among the sequence's computed tokens.

        Return the other ones, and the pins that no request had set before, with their tokens in full blocks. A pin is refused if
        the cache lacks its blocks: early exit keeps some out, and those that left a window may be evicted.
        """
        waiting, new = [], []
        for pin in pins:
            num_blocks = pin.num_tokens // self.block_size
            if num_blocks * self.block_size > num_computed_tokens:  # also of a sequence that has got no block yet
                waiting.append(pin)
                continue
            table = self._tables[sequence_id]
            if len(hashes := table.hashes[:num_blocks]) == num_blocks:
                is_new = self.pins.get(hashes[-1]) is None
                if self.pins.pin(hashes, pin.seconds, table.salt) and is_new:
                    new.append(PrefixPin(num_tokens=num_blocks * self.block_size, seconds=pin.seconds))
            else:
                self.pins.refuse()
        return waiting, new

    def use_pins(self, salt: str, hashes: Sequence[bytes], token_ids: Sequence[int]) -> int:
        """Extend the pins of prefixes of a prompt; return the tokens of the longest.

        ``hashes``: its ``block_hashes``.
        """
        if not self.pins:
            return 0
        hashes = list(hashes)
        extend_hashes(hashes, salt, token_ids, self.block_size)
        return self.pins.use(hashes)

    def clear_cached(self) -> int:
        """Empty the prefix cache, and end all pins; return how many blocks became free, over all groups."""
        self.pins.unpin()
        num_cached = self.num_cached
        for allocator in self.allocators:
            allocator.clear_cached()
        return num_cached

    @property
    def num_cached(self) -> int:
        """The number of cached blocks that no sequence holds, over all groups."""
        return sum(allocator.num_cached for allocator in self.allocators)

    def check(self) -> None:
        """Assert that tables, pins and allocators agree on the references of every block."""
        self.pins.check()
        for index, allocator in enumerate(self.allocators):
            allocator.check()
            references = self.pins.references(index)
            for table in self._tables.values():
                for block in table.groups[index]:
                    if block is not None:
                        references[block] = references.get(block, 0) + 1
            assert references == allocator.references(), f"group {index}: tables, pins and references differ"
        assert all(self.is_open(owner) for owner in self._pending.values()), "a closed sequence has pending blocks"


def _held(blocks: Sequence[int | None], index: int) -> int:
    block = blocks[index]
    assert block is not None, "the slot of a computed token has no block"
    return block
