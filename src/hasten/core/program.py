"""``answer_messages``: the inner side of a program that answers messages within limits.

``KillableProgram`` is the outer side. This module imports the standard library only. A message in either direction is its length
in bytes (8 bytes), then JSON in UTF-8.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each message. The caller's own limit of time comes first, unless the caller is dead."""

    memory: int  # bytes, beside what the program has at its start
    memory_per_input_byte: int
    cpu_seconds: int


class Readable(Protocol):
    def recv(self, length: int, /) -> bytes: ...


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    data = json.dumps(message, ensure_ascii=False).encode(errors="surrogatepass")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: Readable, before_read: Callable[[int], None]) -> Any:
    """Return the next message; None if the other end has closed. ``before_read`` gets its length in bytes."""
    header = _read(connection, _LENGTH.size)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    before_read(length)
    data = _read(connection, length)
    return None if data is None else json.loads(data.decode(errors="surrogatepass"))


def answer_messages(answer: Callable[[Mapping[str, Any]], Mapping[str, Any]], limits: Limits) -> None:
    """Answer messages on the socket that stands for standard input, until it closes."""
    connection = socket.socket(fileno=0)
    address_space = _address_space()
    send(connection, {"ready": True})
    with suppress(ConnectionError):  # the caller has gone
        while (request := receive(connection, lambda length: _set_limits(limits, address_space, length))) is not None:
            send(connection, answer(request))


def _read(connection: Readable, length: int) -> bytearray | None:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(length - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return data


def _set_limits(limits: Limits, address_space: int | None, length: int) -> None:
    """Limit memory and processor time for a message of ``length`` bytes."""
    import resource

    if address_space is not None:
        limit = address_space + limits.memory + limits.memory_per_input_byte * length
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    limit = int(time.process_time()) + limits.cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _address_space() -> int | None:
    """Return the bytes of this process's address space; None where the system does not say."""
    with suppress(OSError, ValueError):
        import resource

        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return None
