"""``BlockAllocator``: the blocks of one KV group, as integers. Each block is free, held or cached.

::

    free ──allocate──► held (references > 0) ──last release──► cached (has a hash, can be found)
      ▲                  ▲                          │                 │
      └──────────────────┼── last release, no hash ─┘                 │
                         ├──────────── hold (a prefix hit) ◄──────────┤
                         └─ allocate evicts the least recently used ◄─┘

It knows no tensors, sequences or tokens. Blocks are reference-counted, because forks and prefix hits share them.
"""

from __future__ import annotations

from collections import OrderedDict


class BlockAllocator:
    def __init__(self, num_blocks: int, *, keep_cached: bool = True) -> None:
        """``keep_cached``: whether a block with a hash stays cached after its last release."""
        self.num_blocks = num_blocks
        self._keep_cached = keep_cached
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._references: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self.num_evicted = 0  # cached blocks that ``allocate`` took

    @property
    def num_held(self) -> int:
        return len(self._references)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """The number of blocks that ``allocate`` can return: free and cached ones."""
        return len(self._free) + len(self._cached)

    def allocate(self, after: int | None = None) -> int:
        """Return a block with one reference. Block ``after + 1`` is preferred, so that tables stay contiguous.

        The caller checks ``num_available`` first.
        """
        assert self.num_available > 0, "allocate from an exhausted pool"
        if not self._free:
            block, _ = self._cached.popitem(last=False)
            self.unpublish(block)
            self.num_evicted += 1
        elif after is not None and after + 1 in self._free:
            block = after + 1
            del self._free[block]
        else:
            block, _ = self._free.popitem(last=False)
        self._references[block] = 1
        return block

    def hold(self, block: int) -> None:
        """Add a reference to a held or cached block."""
        assert block in self._references or block in self._cached, "hold of a free block"
        self._cached.pop(block, None)
        self._references[block] = self._references.get(block, 0) + 1

    def release(self, block: int) -> None:
        """Remove a reference. The last one leaves the block cached if it has a hash, else free."""
        self._references[block] -= 1
        if self._references[block]:
            return
        del self._references[block]
        if block in self._hash_of and self._keep_cached:
            self._cached[block] = None
        else:
            self.unpublish(block)
            self._free[block] = None

    def is_held(self, block: int) -> bool:
        return block in self._references

    def is_shared(self, block: int) -> bool:
        return self._references[block] > 1

    def is_published(self, block: int) -> bool:
        return block in self._hash_of

    def num_references(self, block: int) -> int:
        return self._references[block]

    def find(self, block_hash: bytes) -> int | None:
        """Return the held or cached block with this hash, or None."""
        return self._block_of.get(block_hash)

    def publish(self, block: int, block_hash: bytes) -> None:
        """Make a full, computed, held block findable. The first block published under a hash keeps it."""
        assert block in self._references, "publish of a block without references"
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def unpublish(self, block: int) -> None:
        """Remove the block's hash, so that no later request finds it."""
        assert block not in self._cached, "unpublish of a cached block"
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._block_of[block_hash]

    def free_cached(self, block: int) -> None:
        """Free one cached block."""
        del self._cached[block]
        del self._block_of[self._hash_of.pop(block)]
        self._free[block] = None

    def clear_cached(self) -> None:
        """Free every cached block."""
        for block in self._cached:
            del self._block_of[self._hash_of.pop(block)]
        self._free.update(self._cached)
        self._cached.clear()

    def references(self) -> dict[int, int]:
        """Return the number of references of each held block."""
        return dict(self._references)

    def check(self) -> None:
        """Assert that the three states partition the pool and that the hash index agrees with them."""
        free, cached, held = set(self._free), set(self._cached), set(self._references)
        assert len(free) + len(cached) + len(held) == self.num_blocks, "free + cached + held != total"
        assert free | cached | held == set(range(self.num_blocks)), "a block is in two states"
        assert all(count > 0 for count in self._references.values()), "a held block has no reference"
        assert {b: h for h, b in self._block_of.items()} == self._hash_of, "the hash index is not one to one"
        assert not free & set(self._hash_of), "a free block can be found"
        assert cached <= set(self._hash_of), "a cached block cannot be found"
