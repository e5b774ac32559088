"""The order in which a full store evicts values, after the expired ones.

- ``"lru"``: the least recent use first. A put is a use.
- ``"lfu"``: the fewest hits first, among equals the least recent use. A put value starts at 0 hits.

A store makes room before it inserts a value, so that a new value, which has the fewest hits, is not evicted at once. It may be the
next to go: LFU keeps what was used, and a new value has until the next puts to get a hit.
"""

from __future__ import annotations

from collections import OrderedDict


class EvictionQueue:
    """The keys of a store in memory, in the order of eviction. Keys with equal hits are ordered by use.

    Every key has one bucket per number of hits (LRU: one for all), so that a use costs O(1). The next key is in the lowest bucket;
    finding it costs the number of buckets, which is at most the square root of twice the number of hits.
    """

    def __init__(self, eviction: str) -> None:
        self._counts_hits = eviction == "lfu"
        self._buckets: dict[int, OrderedDict[bytes, None]] = {}

    def add(self, key: bytes, hits: int) -> None:
        """Add a key as the most recent use among those with equal hits."""
        self._buckets.setdefault(self._bucket(hits), OrderedDict())[key] = None

    def remove(self, key: bytes, hits: int) -> None:
        """Remove a key that was added with these hits."""
        bucket = self._bucket(hits)
        del self._buckets[bucket][key]
        if not self._buckets[bucket]:
            del self._buckets[bucket]

    def first(self) -> bytes:
        """Return the next key to evict. There must be one."""
        return next(iter(self._buckets[min(self._buckets)]))

    def _bucket(self, hits: int) -> int:
        return hits if self._counts_hits else 0
