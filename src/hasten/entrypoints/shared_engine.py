"""``SharedEngine``: one engine for several threads, each of which waits for its own deltas.

There is no thread of its own: whichever thread waits takes the next step, and every step serves the requests of all threads. The
lock is fair, so threads step in turn.
"""

from __future__ import annotations

import atexit
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from hasten.core.errors import HastenError
from hasten.core.output import Delta
from hasten.core.request import Request
from hasten.engine.engine import Engine
from hasten.entrypoints.fair_lock import FairLock
from hasten.entrypoints.shared_results import RequestEngine

MAX_PAUSE = 0.01  # seconds between two looks at whether a batch is full or a signal has come


class Inbox:
    """The deltas of some requests that the caller has not taken; ``SharedEngine.open`` sends the requests.

    If it is dropped without ``abandon``, its requests end with their next delta. It has no finaliser, because an interrupt that
    comes within one is lost.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.deltas: list[Delta] = []  # guarded by the lock of the engine
        self.unfinished: set[str] = set()  # ids of requests in the engine


class SharedEngine:
    """Every public method may be called from any thread."""

    def __init__(self, engine: Engine, requests: RequestEngine | None = None) -> None:
        """``requests`` runs the requests, such as ``SharedResults``; None: the engine itself."""
        self._engine: Engine | None = engine  # None: closed
        self._requests: RequestEngine | None = requests or engine
        self._is_closed = False
        self._lock = FairLock()
        self._inboxes: dict[str, weakref.ref[Inbox]] = {}  # by the ids of open requests
        self._abandoned: deque[str] = deque()  # requests to end, by id
        # Daemon threads may still step when the interpreter ends. Not a finaliser, which would wait in the collector too.
        atexit.register(_halt, weakref.ref(self))

    def open(self, inbox: Inbox) -> None:
        """Add the requests of an inbox, all of them or none.

        Raises ``InvalidRequest`` for one that can never run.
        """
        with self.exclusive():
            requests = self._open_requests()
            receiver = weakref.ref(inbox)
            try:
                for request in inbox.requests:
                    inbox.unfinished.add(request.request_id)
                    self._inboxes[request.request_id] = receiver
                    requests.add(request)
            except Exception:
                self._abandoned.extend(inbox.unfinished)
                inbox.unfinished.clear()
                raise

    def take(self, inbox: Inbox, check: Callable[[], None]) -> list[Delta]:
        """Step the engine until the inbox has deltas, and return them.

        ``check`` is called before each step and may raise.
        """
        while True:
            check()
            pause = 0.0
            self._lock.acquire()  # not ``exclusive``, which costs some microseconds more
            try:
                if not inbox.deltas:  # else another thread's step has filled it
                    pause = self._step(inbox)
                if inbox.deltas:
                    deltas, inbox.deltas = inbox.deltas, []
                    return deltas
            finally:
                self._release()
            if pause:
                time.sleep(min(pause, MAX_PAUSE))

    def abandon(self, request_ids: set[str]) -> None:
        """End requests.

        A finaliser may call it at any point, within a step too: then they end before the next step.
        """
        self._abandoned.extend(request_ids)
        request_ids.clear()
        self._end_abandoned_if_free()

    def close(self) -> None:
        """Give up the engine with all its requests. Later calls raise ``HastenError``."""
        self._is_closed = True
        if not self._lock.is_mine:  # else a signal handler calls it during a step, whose end frees the engine
            self._lock.acquire()
            self._release()

    @contextmanager
    def exclusive(self) -> Iterator[Engine]:
        """Yield the engine between two steps; no other thread uses it meanwhile."""
        self._lock.acquire()
        try:
            yield self._open_engine()
        finally:
            self._release()

    def halt(self) -> None:
        """Wait for the current step and allow no other: the interpreter is about to free what steps use."""
        self._lock.halt()

    def _open_engine(self) -> Engine:
        """Return the engine without abandoned requests. The lock is held."""
        if self._engine is None or self._is_closed:
            raise HastenError("this LLM is closed", remedy="Make a new one")
        if self._abandoned:
            self._end_abandoned(self._open_requests())
        return self._engine

    def _open_requests(self) -> RequestEngine:
        assert self._requests is not None, "the engine is closed"
        return self._requests

    def _release(self) -> None:
        if self._is_closed:
            self._engine = self._requests = None
        self._lock.release()
        if self._abandoned:
            self._end_abandoned_if_free()

    def _step(self, inbox: Inbox) -> float:
        """Take one step, unless the engine waits for a batch to fill. Return how many seconds it waits yet."""
        self._open_engine()
        requests = self._open_requests()
        if pause := requests.idle_seconds():
            return pause
        inboxes, deltas = self._inboxes, requests.step()
        if not deltas and not requests.has_unfinished_requests:
            raise HastenError("the engine has lost a request", got=", ".join(sorted(inbox.unfinished)), remedy="Send it again")
        for delta in deltas:
            receiver = inboxes.get(delta.request_id)
            owner = None if receiver is None else receiver()
            if owner is not None:
                owner.deltas.append(delta)
            elif delta.output is None:
                self._abandoned.append(delta.request_id)
            if delta.output is not None:
                inboxes.pop(delta.request_id, None)
                if owner is not None:
                    owner.unfinished.discard(delta.request_id)
        return 0.0

    def _end_abandoned_if_free(self) -> None:
        """End the abandoned requests, unless a thread holds the lock: the next one to take it does so."""
        while self._abandoned and self._lock.try_acquire():
            try:
                if self._requests is None:
                    self._abandoned.clear()
                else:
                    self._end_abandoned(self._requests)
            finally:
                self._lock.release()

    def _end_abandoned(self, requests: RequestEngine) -> None:
        while self._abandoned:
            request_id = self._abandoned.popleft()
            self._inboxes.pop(request_id, None)
            requests.abort(request_id)


def _halt(engine: weakref.ref[SharedEngine]) -> None:
    if (alive := engine()) is not None:
        alive.halt()
