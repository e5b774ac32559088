"""``RedisConnection``: one connection of the ``redis`` package, with one time limit for all of a call.

The package limits each read of a socket, so a server that sends byte by byte holds a caller for as long as it likes. Here the limit
is of the whole call: looking up the name, connecting, logging in, sending and reading. This module imports ``redis``, an extra.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry

from hasten.caching.base import StoreFailed
from hasten.caching.redis_url import RedisUrl
from hasten.core.errors import clip, printable


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The server's refusal of one command; the connection can be used further."""

    message: str


Reply = bytes | int | list[Any] | ErrorReply | None


class RedisConnection:
    """A connection for one call at a time. It connects in the first call."""

    def __init__(self, url: RedisUrl) -> None:
        self._name = url.name
        self._deadline = _Deadline()
        self._connection = _connection(url, self._deadline)
        self._pid = os.getpid()
        self._is_clean = False

    @property
    def is_clean(self) -> bool:
        """Whether the last call read every reply. If not, close the connection: a reply may still come."""
        return self._is_clean

    def is_ready(self) -> bool:
        """Return whether the connection is open, belongs to this process and has nothing to read."""
        self._deadline.start(1)  # it does not wait
        try:
            return self._pid == os.getpid() and not self._connection.can_read(0)
        except (RedisError, OSError):  # the server has closed it
            return False

    def call(self, commands: Sequence[Sequence[bytes | int]], timeout: float) -> list[Reply]:
        """Send commands in one packet and return their replies.

        Raises ``StoreFailed`` after ``timeout`` seconds at the latest.
        """
        self._is_clean = False
        self._deadline.start(timeout)
        try:
            self._connection.connect()
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
            replies = [self._read() for _ in commands]
        except Exception as error:  # for broken replies the package raises errors of many types
            if self._deadline.has_passed or isinstance(error, (TimeoutError, RedisTimeout)):
                raise StoreFailed(f"Redis at {self._name} did not answer within {timeout:g} s") from None
            raise StoreFailed(f"Redis at {self._name}: {_message(error)}") from None
        self._is_clean = True
        return replies

    def close(self) -> None:
        """Close the socket. Never raises."""
        self._is_clean = False
        self._connection.disconnect()

    def _read(self) -> Reply:
        try:
            reply: Reply = self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return ErrorReply(_message(error))
        return reply


class _Deadline:
    """When the running call ends, in seconds of ``time.monotonic``."""

    def __init__(self) -> None:
        self._end = 0.0

    def start(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self._end

    def remaining(self) -> float:
        """Return the seconds that are left. Raises ``TimeoutError`` where none are."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        return seconds


class _LimitedSocket:
    """The methods of a socket that the package uses, each within the deadline."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock, self._deadline = sock, deadline
        self._timeout: float | None = None

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds  # 0: do not wait

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._limit()
        return self._sock.recv(size, flags)

    def recv_into(self, buffer: bytearray) -> int:
        self._limit()
        return self._sock.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        self._limit()
        self._sock.sendall(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()

    def _limit(self) -> None:
        remaining = self._deadline.remaining()
        self._sock.settimeout(remaining if self._timeout is None else min(self._timeout, remaining))


class _TcpConnection(Connection):
    deadline: _Deadline

    def _connect(self) -> _LimitedSocket:
        return _connect_within(self, self.deadline, super()._connect)


class _TlsConnection(SSLConnection):
    deadline: _Deadline

    def _connect(self) -> _LimitedSocket:
        return _connect_within(self, self.deadline, super()._connect)


class _UnixConnection(UnixDomainSocketConnection):
    deadline: _Deadline
    host, port = "", 0  # the package names them in its errors

    def _connect(self) -> _LimitedSocket:
        return _connect_within(self, self.deadline, super()._connect)


_KINDS: dict[str, Callable[..., _TcpConnection | _TlsConnection | _UnixConnection]] = {
    "tcp": _TcpConnection,
    "tls": _TlsConnection,
    "unix": _UnixConnection,
}


def _connection(url: RedisUrl, deadline: _Deadline) -> AbstractConnection:
    # RESP 2 and no client information: connecting takes no round trip, except for a password or a database.
    settings: dict[str, Any] = {
        "db": url.database,
        "username": url.username,
        "password": url.password,
        "protocol": 2,
        "driver_info": None,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "health_check_interval": 0,
    }
    if url.path is not None:
        connection = _KINDS["unix"](path=url.path, **settings)
    else:
        connection = _KINDS["tls" if url.tls else "tcp"](host=url.host, port=url.port, **url.tls_files, **settings)
    connection.deadline = deadline
    return connection


def _connect_within(connection: AbstractConnection, deadline: _Deadline, connect: Callable[[], socket.socket]) -> _LimitedSocket:
    """Connect in a thread and wait for it until the deadline; looking up a name knows no time limit."""
    connection.socket_timeout = connection.socket_connect_timeout = deadline.remaining()
    outcome: Future[socket.socket] = Future()

    def run() -> None:
        try:
            sock = connect()
        except BaseException as error:
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(error)
            return
        if outcome.set_running_or_notify_cancel():
            outcome.set_result(sock)
        else:
            sock.close()  # too late

    threading.Thread(target=run, name="hasten-redis-connect", daemon=True).start()
    try:
        return _LimitedSocket(outcome.result(deadline.remaining()), deadline)
    except BaseException as error:
        if outcome.cancel() or not isinstance(error, TimeoutError):
            raise
        return _LimitedSocket(outcome.result(), deadline)


def _message(error: Exception) -> str:
    """Return the message of an error, without the arguments that a server repeats: they are values."""
    text = str(error).partition(", with args beginning with")[0].strip().rstrip(".")
    return clip(printable(text or type(error).__name__), 200)
