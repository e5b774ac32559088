"""The program of an engine's process.

Its standard input is the socket to its caller; it ends when that closes.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial

from hasten.core.errors import HastenError
from hasten.core.output import Delta, RequestRejected
from hasten.entrypoints.engine_client import EngineDied, Event, PendingCall
from hasten.entrypoints.engine_host import EngineHost
from hasten.entrypoints.engine_process.channel import BrokenChannel, Channel
from hasten.entrypoints.engine_process.messages import (
    CALL_TYPES,
    FROM_ENGINE,
    TO_ENGINE,
    CallMessage,
    ErrorFacts,
    FailedCall,
    ResultMessage,
)
from hasten.entrypoints.wiring.build_engine import build_engine

log = logging.getLogger(__name__)


def main() -> None:
    """Load the model that the first message names, and serve until the caller closes the socket."""
    channel = Channel(socket.socket(fileno=os.dup(0)), FROM_ENGINE, TO_ENGINE)
    first = channel.receive()
    if first is None:
        return
    assert first[0] == "open", first
    try:
        loaded = build_engine(first[1].model, first[1].options)
    except Exception as error:
        if not isinstance(error, HastenError):
            log.exception("the model could not be loaded")
        with contextlib.suppress(OSError):
            channel.send("failed", ErrorFacts.of(error))
        return
    gc.collect()
    gc.freeze()  # what is loaded now stays; else a full collection stops the engine for a tenth of a second
    host = EngineHost(loaded, partial(_send_events, channel))
    try:
        with contextlib.suppress(OSError):  # the caller has gone
            channel.send("opened", host.info)
            _serve(channel, host)
    finally:
        host.close()


def _serve(channel: Channel, host: EngineHost) -> None:
    calls: dict[int, PendingCall] = {}
    while (message := channel.receive()) is not None:
        kind, content = message
        if kind == "add":
            host.add(content)
        elif kind == "abort":
            host.abort(content)
        elif kind == "call":
            _call(channel, host, calls, content)
        elif kind == "cancel":
            if (call := calls.get(content)) is not None:
                call.cancel()
        else:
            raise BrokenChannel(f"a second message {kind!r}")


def _call(channel: Channel, host: EngineHost, calls: dict[int, PendingCall], message: CallMessage) -> None:
    types = CALL_TYPES[message.name]
    call = host.call(message.name, **types.read_arguments(message.arguments))
    calls[message.number] = call

    def answer(_: object) -> None:
        del calls[message.number]
        error = call.result.exception()
        with contextlib.suppress(OSError):
            if error is None:
                try:
                    channel.send("result", ResultMessage(message.number, types.result.dump_python(call.result.result())))
                    return
                except (TypeError, ValueError, OverflowError) as unsendable:
                    error = unsendable
            if not isinstance(error, HastenError | CancelledError):
                log.error("the call %s failed", message.name, exc_info=error)
            channel.send("error", FailedCall(message.number, ErrorFacts.of(error)))

    call.result.add_done_callback(answer)


def _send_events(channel: Channel, events: list[Event], abort: Callable[[str], None]) -> None:
    deltas = [event for event in events if isinstance(event, Delta)]
    with contextlib.suppress(OSError):  # the caller has gone; the program ends soon
        if deltas:
            channel.send("deltas", deltas)
        for event in events:
            if isinstance(event, RequestRejected):
                channel.send("rejected", event)
            elif isinstance(event, EngineDied):
                channel.send("died", event.error)


if __name__ == "__main__":
    main()
