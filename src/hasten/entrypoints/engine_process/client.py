"""``EngineProcess``: the ``EngineClient`` of an engine in a process of its own."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from hasten.core.engine_options import EngineOptions
from hasten.core.errors import HastenError
from hasten.core.output import RequestRejected
from hasten.core.request import Request
from hasten.entrypoints.engine_client import EngineDied, Event, OnEvents, PendingCall
from hasten.entrypoints.engine_process.channel import BrokenChannel, Channel
from hasten.entrypoints.engine_process.messages import CALL_TYPES, FROM_ENGINE, TO_ENGINE, CallMessage, OpenEngine
from hasten.entrypoints.input_processor import InputProcessor
from hasten.entrypoints.model_info import ModelInfo
from hasten.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0  # that the process has to end; then it is killed


class EngineProcess:
    """What blocks has a thread of its own, so no method waits for the process, even if it is stopped."""

    def __init__(self, model: str, options: EngineOptions, on_events: OnEvents) -> None:
        """Start the process and wait until it has loaded the model. Raises the ``HastenError`` of loading."""
        self._on_events = on_events
        self._process, self._channel = _start()
        self._mutex = threading.Lock()
        self._numbers = itertools.count()
        self._calls: dict[int, tuple[str, Future[Any]]] = {}  # name and result, by number
        self._outbox: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._died: EngineDied | None = None  # None: it runs
        self._is_closed = False
        try:
            self._info = self._open(OpenEngine(model, options))
            tokenizer = TextTokenizer.load(Path(self._info.folder), self._info.vocab_size)
        except BaseException:  # an interrupt, too
            self._kill()
            self._channel.close()
            raise
        self._input_processor = InputProcessor.of(self._info, tokenizer)
        self._reader = threading.Thread(target=self._read, name="hasten-engine-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="hasten-engine-writer", daemon=True)
        self._reader.start()
        self._writer.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def input_processor(self) -> InputProcessor:
        return self._input_processor

    @property
    def pid(self) -> int:
        return self._process.pid

    def add(self, request: Request) -> None:
        self._outbox.put(("add", request))

    def abort(self, request_id: str) -> None:
        self._outbox.put(("abort", request_id))

    def call(self, name: str, **arguments: Any) -> PendingCall:
        number, result = next(self._numbers), Future[Any]()
        result.set_running_or_notify_cancel()
        with self._mutex:
            if self._died is not None or self._is_closed:
                result.set_exception((self._died or EngineDied("")).as_exception())
                return PendingCall(result, lambda: None)
            self._calls[number] = (name, result)
        message = CallMessage(number, name, CALL_TYPES[name].write_arguments(arguments))
        self._outbox.put(("call", message))
        return PendingCall(result, partial(self._outbox.put, ("cancel", number)))

    def close(self) -> None:
        with self._mutex:
            self._is_closed = True
        self._outbox.put(None)
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
        if threading.current_thread() not in (self._reader, self._writer):
            self._reader.join()
            self._writer.join()
        self._channel.close()

    def _open(self, request: OpenEngine) -> ModelInfo:
        try:
            self._channel.send("open", request)
            message = self._channel.receive()
        except OSError:  # it has ended without reading the request
            message = None
        if message is None:
            raise HastenError("the engine's process ended while it loaded the model", got=self._exit_reason())
        kind, content = message
        if kind == "failed":
            raise content.as_exception()
        assert kind == "opened" and isinstance(content, ModelInfo), kind
        return content

    def _read(self) -> None:
        error = ""
        try:
            while (message := self._channel.receive()) is not None:
                self._deliver(*message)
        except OSError:  # the process was killed
            pass
        except BrokenChannel as broken:
            error = f"its process sent no message: {broken}"
            self._kill()
        except Exception as bug:  # nothing that waits may wait for ever
            log.exception("a message of the engine's process could not be delivered")
            error = f"{type(bug).__name__}: {bug}"
            self._kill()
        self._end(EngineDied("" if self._is_closed else error or self._exit_reason()))

    def _deliver(self, kind: str, content: Any) -> None:
        if kind == "deltas":
            self._on_events(content, self.abort)
        elif kind == "rejected":
            self._on_events([content], self.abort)
        elif kind == "result":
            name, result = self._take_call(content.number)
            try:
                result.set_result(CALL_TYPES[name].result.validate_python(content.value))
            except ValueError:
                result.set_exception(
                    HastenError("the engine's process sent a result of the wrong form", got=f"the result of {name}")
                )
        elif kind == "error":
            self._take_call(content.number)[1].set_exception(content.error.as_exception())
        elif kind == "died":
            self._end(EngineDied(content))
        else:
            raise BrokenChannel(f"a second message {kind!r}")

    def _take_call(self, number: int) -> tuple[str, Future[Any]]:
        with self._mutex:
            return self._calls.pop(number)

    def _end(self, died: EngineDied) -> None:
        """Tell all that wait for the engine that it has ended. The first reason stays."""
        with self._mutex:
            if self._died is not None:
                return
            self._died = died
            calls, self._calls = self._calls, {}
        for _, result in calls.values():
            result.set_exception(died.as_exception())
        events: list[Event] = [died]
        self._on_events(events, self.abort)
        self._outbox.put(None)

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._channel.send(*message)
            except OSError:  # the reader says that the process has ended
                break
            except Exception as error:  # a bug, but of this message alone: msgpack cannot carry its values
                log.exception("a message to the engine's process could not be sent")
                self._refuse(*message, f"{type(error).__name__}: {error}")
        self._channel.shut_down()

    def _refuse(self, kind: str, content: Any, got: str) -> None:
        """End what a message that could not be sent has asked for."""
        what = "the engine's process cannot be sent this"
        if kind == "add":
            rejected = RequestRejected(request_id=content.request_id, kind="InvalidRequest", what=what, got=got)
            self._on_events([rejected], self.abort)
        elif kind == "call":
            self._take_call(content.number)[1].set_exception(HastenError(what, got=got))

    def _exit_reason(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        return f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


def _start() -> tuple[subprocess.Popen[bytes], Channel]:
    ours, theirs = socket.socketpair()
    try:
        # The socket is its standard input, so no inherited descriptor can be in the way. Its own process group keeps a Ctrl-C at
        # the terminal from it: the caller closes it.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hasten.entrypoints.engine_process"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            process_group=0,
        )
    except OSError as error:
        ours.close()
        raise HastenError("the engine's process cannot be started", got=str(error)) from error
    finally:
        theirs.close()
    return process, Channel(ours, TO_ENGINE, FROM_ENGINE)
