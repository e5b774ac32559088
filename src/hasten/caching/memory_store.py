"""``MemoryStore``: a result cache's values in the memory of this process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hasten.caching.base import StoredEntry, StoreFailed, StoreLimits, StoreUsage
from hasten.caching.eviction import EvictionQueue

EXPIRED_PER_CALL = 64  # expired values that one put removes at most: no call takes long when many expire at once


@dataclass(slots=True)
class _Entry:
    value: bytes
    num_bytes: int
    expires: float
    hits: int = 0


class MemoryStore:
    """A ``ResultStore`` in memory, for any number of threads; ``close`` frees it. Calls take microseconds.

    ``clock`` returns seconds since 1970. Expired values hold their memory until a later put or ``usage`` removes them.
    """

    does_io = False
    counts_usage = True

    def __init__(self, limits: StoreLimits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._is_closed = False
        self._empty()
        self._num_evicted = 0

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            self._check_open()
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry.expires <= self._clock():
                self._drop(key)
                return None
            self._queue.remove(key, entry.hits)
            entry.hits += 1
            self._queue.add(key, entry.hits)
            return entry.value

    def put(self, key: bytes, value: bytes) -> None:
        num_bytes = len(key) + len(value)
        with self._lock:
            self._check_open()
            now = self._clock()
            self._drop_expired(now, EXPIRED_PER_CALL)
            if key in self._entries:
                self._drop(key)
            if num_bytes > self._limits.max_bytes:
                return
            while self._num_bytes + num_bytes > self._limits.max_bytes or len(self._entries) >= self._limits.max_entries:
                if not self._drop_expired(now, 1):
                    self._drop(self._queue.first())
                    self._num_evicted += 1
            self._entries[key] = _Entry(value, num_bytes, now + self._limits.ttl)
            self._num_bytes += num_bytes
            self._queue.add(key, 0)

    def remove(self, key: bytes) -> None:
        with self._lock:
            self._check_open()
            if key in self._entries:
                self._drop(key)

    def clear(self) -> int:
        with self._lock:
            self._check_open()
            now = self._clock()
            num_removed = sum(entry.expires > now for entry in self._entries.values())
            self._empty()
            return num_removed

    def entries(self) -> Iterator[StoredEntry]:
        with self._lock:
            self._check_open()
            now = self._clock()
            return iter(
                [
                    StoredEntry(key=key, num_bytes=entry.num_bytes, expires=entry.expires, hits=entry.hits)
                    for key, entry in self._entries.items()
                    if entry.expires > now
                ]
            )

    def usage(self) -> StoreUsage:
        while True:
            with self._lock:  # other threads get their turn between the calls
                self._check_open()
                if self._drop_expired(self._clock(), EXPIRED_PER_CALL) < EXPIRED_PER_CALL:
                    return StoreUsage(num_entries=len(self._entries), num_bytes=self._num_bytes)

    @property
    def num_evicted(self) -> int:
        return self._num_evicted

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._empty()

    def _empty(self) -> None:
        # In the order of their puts, which is that of expiry unless the clock was set back: then some are removed later.
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._num_bytes = 0
        self._queue = EvictionQueue(self._limits.eviction)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreFailed("the store is closed")

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self._num_bytes -= entry.num_bytes
        self._queue.remove(key, entry.hits)

    def _drop_expired(self, now: float, limit: int) -> int:
        """Remove up to ``limit`` expired values; return how many."""
        for num_removed in range(limit):
            key = next(iter(self._entries), None)
            if key is None or self._entries[key].expires > now:
                return num_removed
            self._drop(key)
        return limit
