"""``GuardedStore``: a result store whose failures reach no request.

It counts them, and skips a store that keeps failing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from hasten.caching.base import ResultStore, StoreFailed, StoreUsage
from hasten.caching.circuit_breaker import CircuitBreaker

log = logging.getLogger(__name__)
T = TypeVar("T")


class GuardedStore:
    """Values by key, for any number of threads. No method raises because of the store.

    Reads and writes have a circuit breaker each: a server that is full still answers reads.
    """

    def __init__(self, store: ResultStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take over a store; ``close`` closes it."""
        self.store = store  # unguarded
        self._reads, self._writes = CircuitBreaker(clock), CircuitBreaker(clock)
        self._mutex = threading.Lock()
        self._hits = self._misses = self._failures = self._skipped = 0

    @property
    def does_io(self) -> bool:
        return self.store.does_io

    @property
    def hits(self) -> int:
        """How many values ``get`` has returned."""
        return self._hits

    @property
    def misses(self) -> int:
        """How often the store had no value."""
        return self._misses

    @property
    def failures(self) -> int:
        """How many calls of any kind failed."""
        return self._failures

    @property
    def skipped(self) -> int:
        """How many calls of any kind were not made, because those before had failed."""
        return self._skipped

    @property
    def num_evicted(self) -> int:
        return self.store.num_evicted

    def get(self, key: bytes) -> bytes | None:
        """Return the value; None if there is none or the store does not give it."""
        answered, value = self._guard(self._reads, "reads", lambda: self.store.get(key))
        if answered:
            with self._mutex:
                self._hits += value is not None
                self._misses += value is None
        return value

    def put(self, key: bytes, value: bytes) -> bool:
        """Store a value, and return whether the store took it."""
        return self._guard(self._writes, "writes", lambda: self.store.put(key, value))[0]

    def remove(self, key: bytes) -> bool:
        """Remove a value, and return whether the store did."""
        return self._guard(self._writes, "writes", lambda: self.store.remove(key))[0]

    def usage(self) -> StoreUsage | None:
        """Return what the store holds; None if it does not say.

        A server is asked for all its names: this is not for every request.
        """
        return self._guard(self._reads, "reads", self.store.usage)[1]

    def stats(self) -> dict[str, int | None]:
        """Return the counters, and what the store holds.

        ``entries`` and ``bytes`` are None where the store would have to list all keys, or does not answer.
        """
        usage = self.usage() if self.store.counts_usage else None
        with self._mutex:
            return {
                "hits": self._hits,
                "misses": self._misses,
                "failures": self._failures,
                "skipped": self._skipped,
                "evicted": self.store.num_evicted,
                "entries": None if usage is None else usage.num_entries,
                "bytes": None if usage is None else usage.num_bytes,
            }

    def close(self) -> None:
        """Close the store. Idempotent."""
        self.store.close()

    def _guard(self, breaker: CircuitBreaker, kind: str, call: Callable[[], T]) -> tuple[bool, T | None]:
        """Return whether the call was made and succeeded, and what it returned."""
        ticket = breaker.admit()
        if ticket is None:
            with self._mutex:
                self._skipped += 1
            return False, None
        try:
            result = call()
        except Exception as error:
            self._fail(breaker, ticket, kind, error)
            return False, None
        except BaseException:
            breaker.abandon(ticket)
            raise
        if breaker.succeed(ticket):
            log.warning("%s of the result cache work again", kind)
        return True, result

    def _fail(self, breaker: CircuitBreaker, ticket: int, kind: str, error: Exception) -> None:
        with self._mutex:
            self._failures += 1
            is_first = self._failures == 1
        if not isinstance(error, StoreFailed):
            log.error("a bug in the result cache", exc_info=error)
        if (seconds := breaker.fail(ticket)) is not None:
            log.warning(
                "%s of the result cache fail: %s; requests go on without it, and the next try is in %g s", kind, error, seconds
            )
        elif is_first:  # a command with one request has no third failure
            log.warning("the result cache has failed: %s; requests go on without it", error)
