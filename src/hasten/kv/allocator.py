"""One group's blocks as integers: every block is free, held or cached, and always exactly one of these.

::

    free ──allocate──► held (references > 0) ──last release──► cached (has a hash, can be found)
      ▲                  ▲                          │                 │
      └──────────────────┼── last release, no hash ─┘                 │
                         ├──────────── hold (a prefix hit) ◄──────────┤
                         └─ allocate evicts the least recently used ◄─┘

It knows no tensor, no sequence and no token. References are counted: forks and prefix hits share blocks.
"""

from __future__ import annotations

from collections import OrderedDict


class BlockAllocator:
    def __init__(self, num_blocks: int, *, keep_cached: bool = True) -> None:
        """``keep_cached``: whether a hashed block stays findable after its last release."""
        self.num_blocks = num_blocks
        self._keep_cached = keep_cached
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._references: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_held(self) -> int:
        return len(self._references)

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` can still give."""
        return len(self._free) + len(self._cached)

    def allocate(self, after: int | None = None) -> int:
        """A block to write, held once. The one next to ``after`` where that is free, so that tables stay contiguous.

        The caller has checked ``num_available``.
        """
        assert self.num_available > 0, "allocate from an exhausted pool"
        if self._free:
            if after is not None and after + 1 in self._free:
                block = after + 1
                del self._free[block]
            else:
                block, _ = self._free.popitem(last=False)
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def hold(self, block: int) -> None:
        """One more holder of a held or cached block."""
        if block in self._cached:
            del self._cached[block]
            self._references[block] = 1
        else:
            self._references[block] += 1

    def release(self, block: int) -> None:
        """One holder fewer; the last one leaves the block cached if it has a hash, free if not."""
        left = self._references[block] - 1
        if left:
            self._references[block] = left
            return
        del self._references[block]
        if block in self._hash_of and self._keep_cached:
            self._cached[block] = None
        else:
            self._forget(block)
            self._free[block] = None

    def held(self, block: int) -> bool:
        return block in self._references

    def shared(self, block: int) -> bool:
        return self._references[block] > 1

    def find(self, block_hash: bytes) -> int | None:
        """The block that holds this content, held or cached."""
        return self._block_of.get(block_hash)

    def publish(self, block: int, block_hash: bytes) -> None:
        """The held block is full and computed: it can be found from now on. The first publisher of a hash wins."""
        assert block in self._references, "publish of a block nobody holds"
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def unpublish(self, block: int) -> None:
        """The held block can no longer be found: its content is not to be trusted."""
        assert block in self._references, "unpublish of a block nobody holds"
        self._forget(block)

    def clear_cached(self) -> None:
        """Forget every block that nobody holds."""
        while self._cached:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self._free[block] = None

    def references(self) -> dict[int, int]:
        """How many holders each held block has (a copy)."""
        return dict(self._references)

    def check(self) -> None:
        """Assert that the three states partition the pool and that the index agrees with them."""
        free, cached, held = set(self._free), set(self._cached), set(self._references)
        assert len(free) + len(cached) + len(held) == self.num_blocks, "free + cached + held != total"
        assert free | cached | held == set(range(self.num_blocks)), "a block is in two states"
        assert all(count > 0 for count in self._references.values()), "a held block has no holder"
        assert {b: h for h, b in self._block_of.items()} == self._hash_of, "the index is not one to one"
        assert not free & set(self._hash_of), "a free block can be found"
        assert cached <= set(self._hash_of), "a cached block cannot be found"

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._block_of[block_hash]
