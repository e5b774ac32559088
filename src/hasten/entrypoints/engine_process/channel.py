"""``Channel``: messages in both directions over a connected socket, each checked when it is read."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

import msgpack
from pydantic import TypeAdapter, ValidationError

_LENGTH = struct.Struct(">Q")
MAX_MESSAGE = 1 << 30  # bytes


class BrokenChannel(Exception):
    """The other end sent what is no message."""


class Channel:
    """Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket, sends: Mapping[str, TypeAdapter[Any]], receives: Mapping[str, TypeAdapter[Any]]):
        """``sends`` and ``receives``: the type of the content by the kind of the message."""
        self._connection, self._sends, self._receives = connection, sends, receives
        self._mutex = threading.Lock()

    def send(self, kind: str, content: Any) -> None:
        """Send a message. Raises ``OSError`` if the other end has closed."""
        data = msgpack.packb([kind, self._sends[kind].dump_python(content, exclude_defaults=True)], use_bin_type=True)
        with self._mutex:
            self._connection.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self) -> tuple[str, Any] | None:
        """Return the next message; None if the other end has closed.

        Raises ``BrokenChannel`` for what is no message, and ``OSError``.
        """
        header = self._read(_LENGTH.size)
        if header is None:
            return None
        (length,) = _LENGTH.unpack(header)
        if length > MAX_MESSAGE:
            raise BrokenChannel(f"a message of {length} bytes")
        data = self._read(length)
        if data is None:
            return None
        try:
            kind, content = msgpack.unpackb(data, strict_map_key=False, use_list=False)
            return kind, self._receives[kind].validate_python(content)
        except (ValueError, TypeError, KeyError, ValidationError, msgpack.UnpackException) as error:
            raise BrokenChannel(f"{type(error).__name__}: {error}") from error

    def shut_down(self) -> None:
        """End both directions; the other end reads that it has closed. Idempotent."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()

    def _read(self, length: int) -> bytearray | None:
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            count = self._connection.recv_into(view[done:])
            if not count:
                return None
            done += count
        return data
