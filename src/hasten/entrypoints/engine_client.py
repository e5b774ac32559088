"""``EngineClient``: runs an engine in a thread of its own. Only plain data crosses into that thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.output import Delta, RequestRejected
from hasten.core.request import Request
from hasten.engine.engine import Engine
from hasten.entrypoints.shared_results import RequestEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineDied:
    """The engine has ended and gives no more deltas. ``error`` is empty after ``EngineClient.close``."""

    error: str

    def as_exception(self) -> HastenError:
        return HastenError("the engine has ended", got=self.error or "it was closed", remedy="Make a new AsyncLLM")


Event = Delta | RequestRejected | EngineDied
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A function to call in the engine's thread, between two steps."""

    function: Callable[[Engine], Any]
    result: Future[Any]

    def run(self, engine: Engine) -> None:
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.function(engine))
        except Exception as error:
            self.result.set_exception(error)

    def fail(self, died: EngineDied) -> None:
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(died.as_exception())


class EngineClient:
    """Requests go to the engine through a queue, which its thread empties between two steps."""

    def __init__(
        self,
        engine: Engine,
        on_events: Callable[[list[Event], Callable[[str], None]], None],
        requests: RequestEngine | None = None,
    ) -> None:
        """``on_events`` is called in the engine's thread, with events in order and with ``abort``.

        ``requests`` runs the requests, such as ``SharedResults``; None: the engine itself.
        """
        self._engine, self._on_events = engine, on_events
        self._requests: RequestEngine = requests or engine
        self._commands: queue.SimpleQueue[Request | str | _Call | None] = queue.SimpleQueue()  # add, abort, call, close
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None  # started by the first request
        self._is_closed = False
        self._died = EngineDied("")  # how the thread has ended, once it has

    def add(self, request: Request) -> None:
        """Add a request, and return at once. Its deltas follow as events, or one ``RequestRejected``."""
        with self._mutex:
            if self._is_closed:
                return
            self._start()
        self._commands.put(request)

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """Call a function between two steps, and return at once. All requests wait while it runs."""
        call = _Call(function, Future())
        with self._mutex:
            if self._is_closed:
                call.fail(self._died)
            else:
                self._start()
                self._commands.put(call)  # the thread fails the calls that it finds at its end
        return call.result

    def check_open(self) -> None:
        """Raise ``HastenError`` if the engine has been closed or has ended."""
        if self._is_closed:
            raise self._died.as_exception()

    def abort(self, request_id: str) -> None:
        """End a request before the next step, and return at once. Does nothing if it has ended."""
        self._commands.put(request_id)

    def close(self) -> None:
        """End the engine's thread, and wait for it. Requests that run get no more deltas. Idempotent."""
        with self._mutex:
            self._is_closed = True
            thread = self._thread
        self._commands.put(None)
        if thread is not None and thread is not threading.current_thread():  # the collector may call this in any thread
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hasten-engine", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        error = ""
        try:
            while (events := self._step()) is not None:
                if events:
                    self._on_events(events, self.abort)
        except BaseException as exception:  # a bug; the callers that wait get it as an event
            log.exception("the engine died")
            error = f"{type(exception).__name__}: {exception}"
        self._end(EngineDied(error))

    def _end(self, died: EngineDied) -> None:
        """Tell all that wait for the engine that it has ended."""
        with self._mutex:
            self._is_closed, self._died = True, died
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Call):
                command.fail(died)
        self._on_events([died], self.abort)

    def _step(self) -> list[Event] | None:
        """Carry out the commands that have come, then run one step. None: the engine was closed."""
        events: list[Event] = []
        block, timeout = not self._requests.has_unfinished_requests, self._requests.idle_seconds()
        while True:
            try:
                command = self._commands.get(block=block or timeout > 0, timeout=None if block else timeout)
            except queue.Empty:
                break
            if command is None:
                return None
            if isinstance(command, _Call):
                command.run(self._engine)
            else:
                events += self._requests.abort(command) if isinstance(command, str) else self._add(command)
            block, timeout = False, 0.0
        return [*events, *self._requests.step()]

    def _add(self, request: Request) -> list[RequestRejected]:
        try:
            self._requests.add(request)
        except InvalidRequest as error:
            return [RequestRejected(request_id=request.request_id, kind=type(error).__name__, what=error.what, **error.fields())]
        except Exception as error:  # a bug, but of this request alone
            log.exception("a request could not be added")
            return [RequestRejected(request_id=request.request_id, kind="InvalidRequest", what=f"{type(error).__name__}: {error}")]
        return []
