"""``ResultCache``: finds results of equal requests, and stores what the engine has computed.

A lookup runs in the caller's thread and a write in a thread of the cache, so the engine never waits for the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from hasten.caching.base import StoreFailed
from hasten.caching.guarded_store import GuardedStore
from hasten.caching.result_key import no_key_because, result_key
from hasten.caching.stored_result import DamagedResult, StoredResult, decode_result, encode_result
from hasten.core.errors import HastenError
from hasten.core.request import Request, ResultTicket

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 1024  # results that wait to be written; further ones are dropped
MAX_WRITE_WAIT = 5.0  # seconds that a result waits to be written; bounds what a slow store adds to ``close`` and to the exit
MAX_RECENT = 256  # results that are remembered for requests that were looked up just before they were stored
MAX_REMEMBERED_TOKENS = 2**19  # of all results in memory, written or not: about 100 MB


@dataclass(slots=True)
class _Recent:
    result: StoredResult
    completed: float  # seconds of the cache's clock
    is_written: bool = False  # or dropped


class ResultCache:
    """The result cache of one engine, for any number of threads.

    No failure of the store is a failure of a request.
    """

    def __init__(
        self,
        store: GuardedStore,
        engine_key: bytes,
        off_because: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``off_because``: why no output of this engine is determined; None: they are."""
        self._store, self._engine_key, self.off_because, self._clock = store, engine_key, off_because, clock
        self._mutex = threading.Lock()
        self._recent: OrderedDict[bytes, _Recent] = OrderedDict()  # oldest first
        self._num_unwritten = 0
        self._num_tokens = 0  # of the recent results
        self._counts: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()  # requests without a key, by reason
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="hasten-result-cache")  # finishes its work at exit
        self._is_closed = False

    @property
    def does_io(self) -> bool:
        """Whether ``find`` may take longer than a few microseconds."""
        return self._store.does_io

    def find(self, request: Request) -> StoredResult | Request:
        """Return the stored result, or the request for the engine: with a ticket if its output may be stored."""
        reason = "batch_dependent_backend" if self.off_because is not None else no_key_because(request)
        if reason is not None:
            with self._mutex:
                self._passed[reason] += 1
            return request
        ticket = ResultTicket(key=result_key(request, self._engine_key), looked_up=self._clock())
        result = self._unwritten(ticket.key) or self._read(ticket.key)
        with self._mutex:
            self._counts["misses" if result is None else "hits"] += 1
        return replace(request, result_ticket=ticket) if result is None else result

    def completed_since(self, ticket: ResultTicket) -> StoredResult | None:
        """Return a result that was completed after this request was looked up."""
        with self._mutex:
            recent = self._recent.get(ticket.key)
            if recent is None or recent.completed < ticket.looked_up:
                return None
            self._counts["shared"] += 1
            return recent.result

    def count_shared(self) -> None:
        """Count a request that shares the computation of an equal one."""
        with self._mutex:
            self._counts["shared"] += 1

    def add(self, key: bytes, result: StoredResult) -> None:
        """Store a result, and return at once: it is found from now on and written soon."""
        with self._mutex:
            self._forget(key)
            self._make_room(result)
            is_full = self._num_unwritten >= MAX_UNWRITTEN or (self._recent and not self._has_room(result))
            if self._is_closed or is_full:
                self._counts["dropped"] += 1
                return
            self._recent[key] = _Recent(result, self._clock())
            self._num_tokens += result.num_tokens
            self._num_unwritten += 1
        try:
            self._writer.submit(self._write, key, result, time.monotonic())
        except RuntimeError:  # closed meanwhile, or the interpreter ends
            with self._mutex:
                self._num_unwritten -= 1
                self._forget(key)
                self._counts["dropped"] += 1

    def flush(self) -> None:
        """Wait until all results so far are written."""
        self._writer.submit(lambda: None).result()

    def clear(self) -> int:
        """Remove all results of the store, those of other engines too, and return how many it had.

        Raises ``HastenError`` if the store does not answer.
        """
        self.flush()
        with self._mutex:
            for key in [key for key, recent in self._recent.items() if recent.is_written]:
                self._forget(key)
        try:
            return self._store.store.clear()
        except StoreFailed as error:
            raise HastenError("the result cache could not be cleared", got=str(error), remedy="Try again") from error

    def close(self) -> None:
        """Write what is not written, unless the store is too slow, and close the store. Idempotent."""
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
        self._writer.shutdown(wait=True)
        self._store.close()

    def stats(self) -> dict[str, Any]:
        """Return plain data.

        ``hits``, ``misses`` and ``shared`` count requests with a key; ``passed`` those without one, by reason. ``hit_rate`` is the
        share of requests with a key that the engine did not compute.
        """
        with self._mutex:
            counts, passed, num_unwritten = Counter(self._counts), dict(self._passed), self._num_unwritten
        keyed = counts["hits"] + counts["misses"]
        return {
            "off_because": self.off_because,
            **{name: counts[name] for name in ("hits", "misses", "shared", "stored", "dropped", "damaged")},
            "hit_rate": (counts["hits"] + counts["shared"]) / keyed if keyed else None,
            "passed": passed,
            "unwritten": num_unwritten,
            "store": self._store.stats(),
        }

    def _make_room(self, result: StoredResult) -> None:
        """Forget the oldest results that are written, as far as this one needs it."""
        while self._recent and (len(self._recent) >= MAX_RECENT or not self._has_room(result)):
            key, oldest = next(iter(self._recent.items()))
            if not oldest.is_written:
                break
            self._forget(key)

    def _has_room(self, result: StoredResult) -> bool:
        return self._num_tokens + result.num_tokens <= MAX_REMEMBERED_TOKENS

    def _forget(self, key: bytes) -> None:
        if (recent := self._recent.pop(key, None)) is not None:
            self._num_tokens -= recent.result.num_tokens

    def _unwritten(self, key: bytes) -> StoredResult | None:
        with self._mutex:
            recent = self._recent.get(key)
            return None if recent is None or recent.is_written else recent.result

    def _read(self, key: bytes) -> StoredResult | None:
        value = self._store.get(key)
        if value is None:
            return None
        try:
            return decode_result(key, value)
        except DamagedResult as error:
            log.warning("a stored result was dropped: %s", error)
            self._store.remove(key)
            with self._mutex:
                self._counts["damaged"] += 1
            return None

    def _write(self, key: bytes, result: StoredResult, added: float) -> None:
        is_stored = False
        try:
            if time.monotonic() - added <= MAX_WRITE_WAIT:
                is_stored = self._store.put(key, encode_result(key, result))
        except Exception:  # a bug; the writer's later work must go on
            log.exception("a result could not be stored")
        finally:
            with self._mutex:
                self._num_unwritten -= 1
                self._counts["stored" if is_stored else "dropped"] += 1
                if (recent := self._recent.get(key)) is not None and recent.result is result:
                    recent.is_written = True
