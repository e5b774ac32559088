"""The first transport: the engine in a thread of this process."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from hasten.core.errors import InvalidRequest
from hasten.core.output import Rejection
from hasten.core.request import Request
from hasten.engine.engine import Engine
from hasten.entrypoints.engine_client import EngineDied, Event

log = logging.getLogger(__name__)


class ThreadClient:
    """Commands wait in a queue; the thread takes them between steps and sleeps while there is nothing to do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[Request | str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, on_events: Callable[[list[Event]], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(on_events,), name="hasten-engine", daemon=True)
        self._thread.start()

    def add(self, request: Request) -> None:
        self._commands.put(request)

    def abort(self, request_id: str) -> None:
        self._commands.put(request_id)

    def close(self) -> None:
        if self._thread is not None:
            self._commands.put(None)
            self._thread.join()
            self._thread = None

    def _run(self, on_events: Callable[[list[Event]], None]) -> None:
        error = ""
        try:
            while (events := self._turn()) is not None:
                if events:
                    on_events(events)
        except BaseException as died:  # a bug: whoever waits must hear of it
            log.exception("the engine died")
            error = f"{type(died).__name__}: {died}"
        on_events([EngineDied(error)])

    def _turn(self) -> list[Event] | None:
        """Take the commands that have come, then one step. None: the engine was told to end."""
        events: list[Event] = []
        block, timeout = not self._engine.unfinished, self._engine.idle_seconds()
        while True:
            try:
                command = self._commands.get(block=block or timeout > 0, timeout=None if block else timeout)
            except queue.Empty:
                break
            if command is None:
                return None
            events += self._obey(command)
            block, timeout = False, 0.0
        return [*events, *self._engine.step()]

    def _obey(self, command: Request | str) -> list[Event]:
        if isinstance(command, str):
            return list(self._engine.abort(command))
        try:
            self._engine.add(command)
        except InvalidRequest as wrong:
            return [Rejection(request_id=command.request_id, kind=type(wrong).__name__, what=wrong.what, **wrong.fields())]
        except Exception as fault:  # a bug, but of this request alone
            log.exception("a request could not be added")
            return [Rejection(request_id=command.request_id, kind="InvalidRequest", what=f"{type(fault).__name__}: {fault}")]
        return []
