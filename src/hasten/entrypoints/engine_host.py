"""``EngineHost``: runs an engine in a thread of its own, for callers in any thread of this process."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from hasten.caching.stored_result import StoredResult
from hasten.core.errors import CapacityError, InvalidRequest
from hasten.core.output import RequestRejected
from hasten.core.request import Request
from hasten.entrypoints.engine_calls import BESIDE, CALLS, QUICK, EngineAccess
from hasten.entrypoints.engine_client import EngineDied, Event, OnEvents, PendingCall
from hasten.entrypoints.input_processor import InputProcessor
from hasten.entrypoints.model_info import ModelInfo
from hasten.entrypoints.wiring.build_engine import LoadedEngine

log = logging.getLogger(__name__)

GRAMMAR_THREADS = 32  # that wait for grammars to be vetted, one after the other; others would wait for those of a stranger
LOOKUP_THREADS = 32  # that wait for a result cache in a file or a server; else a slow one would delay requests in turn


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    function: Callable[..., Any]
    arguments: dict[str, Any]
    result: Future[Any] = field(default_factory=Future)
    has_left: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: Exception) -> None:
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)


class _StepFailed(BaseException):
    """A step of the other requests has failed while a call ran. No call may take it for its own error."""


class EngineHost:
    """The ``EngineClient`` of an engine in this process.

    Requests and calls go to the engine through a queue, which its thread empties between two steps.
    """

    def __init__(self, loaded: LoadedEngine, on_events: OnEvents) -> None:
        self.loaded, self._on_events = loaded, on_events
        self._engine, self._requests = loaded.engine, loaded.make_front()
        self._commands: queue.SimpleQueue[Request | str | _Call | None] = queue.SimpleQueue()  # add, abort, call, close
        self._waiting: deque[_Call] = deque()  # calls that came while another ran
        self._mutex = threading.Lock()
        self._preparing: set[str] = set()  # requests that threads prepare, by id
        self._thread: threading.Thread | None = None  # started by the first request
        self._is_closed = False
        self._died = EngineDied("")  # how the thread has ended, once it has
        self._grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, thread_name_prefix="hasten-grammar")
        self._lookup_threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="hasten-lookup")

    @property
    def info(self) -> ModelInfo:
        return self.loaded.info

    @property
    def input_processor(self) -> InputProcessor:
        return self.loaded.input_processor

    @property
    def pid(self) -> int:
        return os.getpid()

    def add(self, request: Request) -> None:
        """See ``EngineClient``. What takes no time is done in the caller's thread."""
        threads = self._threads_for(request)
        if threads is None:
            self._prepare(request)
            return
        with self._mutex:
            if self._is_closed:
                return
            self._preparing.add(request.request_id)
            threads.submit(self._prepare_in_thread, request)

    def abort(self, request_id: str) -> None:
        with self._mutex:
            self._preparing.discard(request_id)
        self._commands.put(request_id)

    def call(self, name: str, **arguments: Any) -> PendingCall:
        """See ``EngineClient``. Requests wait while it runs, unless ``engine_calls`` says otherwise."""
        call = _Call(CALLS[name], arguments)
        with self._mutex:
            if self._is_closed:
                call.fail(self._died.as_exception())
            elif call.function in BESIDE:
                self._lookup_threads.submit(self._run_call, call)
            else:
                self._start()
                self._commands.put(call)  # the thread fails the calls that it finds at its end
        return PendingCall(call.result, call.has_left.set)

    def close(self) -> None:
        with self._mutex:
            self._is_closed = True
            thread = self._thread
        self._commands.put(None)
        for threads in (self._grammar_threads, self._lookup_threads):
            threads.shutdown(wait=False)
        if thread is not None and thread is not threading.current_thread():  # the collector may call this in any thread
            thread.join()
        if self.loaded.result_cache is not None:
            self.loaded.result_cache.close()

    def _threads_for(self, request: Request) -> ThreadPoolExecutor | None:
        form, cache = request.params.structured_outputs, self.loaded.result_cache
        if form is not None and not self.loaded.input_processor.guides.has_compiled(form):
            return self._grammar_threads
        return self._lookup_threads if cache is not None and cache.does_io else None

    def _prepare_in_thread(self, request: Request) -> None:
        with self._mutex:
            if request.request_id not in self._preparing:  # aborted
                return
        self._prepare(request, is_pending=True)

    def _prepare(self, request: Request, *, is_pending: bool = False) -> None:
        """Complete a request, and send it to the engine or answer it from the result cache."""
        found: Request | list[Event]
        try:
            result = self.loaded.find_result(self.loaded.admit(request))
            found = [*result.replay(request, self._engine.clock())] if isinstance(result, StoredResult) else result
        except Exception as error:
            found = [_rejected(request, error)]
        with self._mutex:
            was_aborted = is_pending and request.request_id not in self._preparing
            self._preparing.discard(request.request_id)
            if self._is_closed or was_aborted:
                return
            if isinstance(found, Request):
                self._start()
                self._commands.put(found)
                return
        self._on_events(found, self.abort)

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
            error = str(exception) if isinstance(exception, _StepFailed) else _describe(exception)
        self._end(EngineDied(error))

    def _end(self, died: EngineDied) -> None:
        """Tell all that wait for the engine that it has ended."""
        with self._mutex:
            self._is_closed, self._died = True, died
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Call):
                self._waiting.append(command)
        while self._waiting:
            self._waiting.popleft().fail(died.as_exception())
        self._on_events([died], self.abort)

    def _step(self) -> list[Event] | None:
        """Carry out the commands that have come, then run one step. None: the engine was closed."""
        events: list[Event] = []
        if self._waiting:
            self._run_call(self._waiting.popleft())
        block = not self._requests.has_unfinished_requests and not self._waiting
        timeout = 0.0 if self._waiting else self._requests.idle_seconds()
        while True:
            try:
                command = self._commands.get(block=block or timeout > 0, timeout=None if block else timeout)
            except queue.Empty:
                break
            if command is None:
                return None
            if isinstance(command, _Call):
                if events:  # a call may take long
                    self._on_events(events, self.abort)
                    events = []
                self._run_call(command)
            else:
                events += self._requests.abort(command) if isinstance(command, str) else self._add(command)
            block, timeout = False, 0.0
        return [*events, *self._requests.step()]

    def _add(self, request: Request) -> list[RequestRejected]:
        try:
            self._requests.add(request)
        except Exception as error:
            return [_rejected(request, error)]
        return []

    def _run_call(self, call: _Call) -> None:
        """Run a call to its end. One that needs more KV blocks than are free waits for running requests."""
        if not call.result.set_running_or_notify_cancel():
            return

        def check() -> None:
            if self._is_closed:
                raise self._died.as_exception()
            if call.has_left.is_set():
                raise CancelledError

        def yield_step() -> None:
            check()
            try:
                self._step_others()
            except Exception as error:
                raise _StepFailed(_describe(error)) from error

        access = EngineAccess(self.loaded, check, yield_step)
        try:
            while True:
                try:
                    call.result.set_result(call.function(access, **call.arguments))
                    return
                except CapacityError:
                    if not self._requests.has_unfinished_requests or call.function in BESIDE:
                        raise
                yield_step()
        except _StepFailed as failure:  # the engine ends, as after a step outside of a call
            call.result.set_exception(EngineDied(str(failure)).as_exception())
            raise
        except Exception as error:
            call.result.set_exception(error)

    def _step_others(self) -> None:
        """Let the requests take a step while a call runs. Further calls wait for its end, but for quick ones."""
        events: list[Event] = []
        while not self._commands.empty():
            command = self._commands.get()
            if command is None:
                self._commands.put(None)  # for ``_step``
                break
            if isinstance(command, _Call):
                if command.function in QUICK:
                    self._run_call(command)
                else:
                    self._waiting.append(command)
            else:
                events += self._requests.abort(command) if isinstance(command, str) else self._add(command)
        if self._requests.has_unfinished_requests and not self._requests.idle_seconds():
            events += self._requests.step()
        if events:
            self._on_events(events, self.abort)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _rejected(request: Request, error: Exception) -> RequestRejected:
    if isinstance(error, InvalidRequest):
        return RequestRejected(request_id=request.request_id, kind=type(error).__name__, what=error.what, **error.fields())
    log.error("a request could not be added", exc_info=error)  # a bug, but of this request alone
    return RequestRejected(request_id=request.request_id, kind="InvalidRequest", what=_describe(error))
