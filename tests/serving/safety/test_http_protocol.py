"""Heads that never end, or too slowly, through real sockets."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from tests.serving.live_server import live_server
from tests.serving.safety.dummy_server import Dummy
from uvicorn.server import ServerState

from hasten.serving.safety.http_protocol import guarded_protocol, uvicorn_settings
from hasten.serving.server_options import ServerOptions

DEADLINE = 20.0
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@contextlib.contextmanager
def client(**options: object) -> Iterator[tuple[socket.socket, Dummy]]:
    server = Dummy(ServerOptions(**options))
    with live_server(server.app, **uvicorn_settings(server.options)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            yield connection, server


def answer_of(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            received += part
    return received


def send_until_refused(connection: socket.socket, part: bytes, limit: int) -> int:
    """Send a part again and again; return the bytes that were sent before the server closed the connection."""
    num_sent = 0
    with contextlib.suppress(ConnectionError):
        while num_sent < limit:
            connection.sendall(part)
            num_sent += len(part)
    return num_sent


@pytest.mark.parametrize("part", [b"x-a: b\r\n", b"x-" + b"a" * 100, b" " * 100], ids=["headers", "name", "value"])
def test_a_head_without_end_is_cut(part: bytes) -> None:
    with client() as (connection, server):
        connection.sendall(HEAD + b"x: ")
        assert send_until_refused(connection, part, 16 << 20) < 16 << 20
        assert answer_of(connection)[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")  # it may be lost, as the client still sends
        assert not server.reached


@pytest.mark.parametrize("start", [b"", b"GET /" + b"a" * 100])
def test_a_target_without_end_is_cut(start: bytes) -> None:
    with client() as (connection, _):
        connection.sendall(start or b"GET /")
        assert send_until_refused(connection, b"a" * 4096, 16 << 20) < 16 << 20


@pytest.mark.parametrize(
    "start",
    [b"2\r\n{}\r\n0\r\nx: ", b"2\r\n{}\r\n0\r\n", b"2;x="],
    ids=["trailer", "trailers", "extension of a chunk"],
)
def test_what_follows_a_body_is_cut(start: bytes) -> None:
    with client() as (connection, server):
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + start)
        part = b"a: b\r\n" * 100 if start.endswith(b"0\r\n") else b"a" * 600
        assert send_until_refused(connection, part, 16 << 20) < 16 << 20
        assert not server.reached


@pytest.mark.parametrize("start", [b"", b"GET / HT", HEAD])
def test_a_slow_head_ends_with_408(start: bytes) -> None:
    with client(header_timeout=0.2) as (connection, server):
        before = time.monotonic()
        connection.sendall(start)
        assert answer_of(connection).startswith(b"HTTP/1.1 408") and time.monotonic() - before < DEADLINE / 2
        assert not server.reached


def test_a_drip_of_headers_ends_with_408() -> None:
    """Each byte comes soon after the one before, but the head has a deadline."""
    with client(header_timeout=0.3) as (connection, server):
        connection.settimeout(0.01)
        received, before = b"", time.monotonic()
        for byte in HEAD * 1000:
            with contextlib.suppress(ConnectionError):
                connection.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
                break
        assert received.startswith(b"HTTP/1.1 408") and time.monotonic() - before < DEADLINE / 2
        assert not server.reached


def test_a_second_head_has_a_deadline_of_its_own() -> None:
    with client(header_timeout=0.3) as (connection, server):
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v1/mod")
        received = answer_of(connection)
        assert received.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in received and server.reached == ["/v1/models"]


def test_the_deadline_of_the_head_spares_the_body_and_the_answer() -> None:
    with client(header_timeout=0.2, body_timeout=0.6) as (connection, _):
        connection.sendall(HEAD + b"content-length: 2\r\n\r\n{")
        answer = answer_of(connection)
        assert answer.startswith(b"HTTP/1.1 408") and b"the body did not arrive within 0.6 seconds" in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/models HTTP/1.1\r\nhost : localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n x: folded\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET  /v1/models\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET /%2e%2e/v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET /health%0d%0ax: HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    ],
)
def test_what_parsers_read_differently_reaches_no_route(request_bytes: bytes) -> None:
    with client(api_keys=("key",)) as (connection, server):
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        assert answer_of(connection)[9:12] in (b"400", b"401", b"403", b"") and not server.reached


def test_the_limits_are_what_cuts() -> None:
    """Planted: uvicorn's own protocol, which keeps a head of any size."""
    server = Dummy()
    with live_server(server.app, http="httptools") as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            connection.sendall(HEAD + b"x: ")
            assert send_until_refused(connection, b"a" * 4096, 4 << 20) >= 4 << 20


def stream(client: socket.socket) -> None:
    client.sendall(b"POST /v1/stream HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")


def test_a_client_that_does_not_read_is_disconnected() -> None:
    """The buffers of both sockets fill, and then uvicorn's send waits."""
    with client(stall_timeout=0.3) as (connection, server):
        has_ended, num_sent = threading.Event(), 0

        async def events() -> AsyncGenerator[bytes, None]:
            nonlocal num_sent
            try:
                while True:
                    await asyncio.sleep(0)
                    yield b"data: " + b"x" * 65_536 + b"\n\n"
                    num_sent += 1
            finally:
                has_ended.set()

        server.events = events
        stream(connection)
        assert has_ended.wait(DEADLINE)
        assert not answer_of(connection).endswith(b"0\r\n\r\n")
    assert 0 < num_sent < 10_000 and server.ended == ["context"]


class Timer:
    def __init__(self, seconds: float, fire: Callable[[], None]) -> None:
        self.seconds, self.fire, self.is_cancelled = seconds, fire, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """Timers that a test fires."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, callback: Callable[..., None], *arguments: object) -> Timer:
        self.timers.append(Timer(seconds, lambda: callback(*arguments)))
        return self.timers[-1]

    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, data: object) -> None:
        self.calls.append("write")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return bool(self.calls)


def connected() -> tuple[Any, Loop, Transport]:
    options, loop, transport = ServerOptions(), Loop(), Transport()
    config = uvicorn.Config(Dummy().app, log_config=None, **uvicorn_settings(options))
    config.load()
    protocol = guarded_protocol(options)(config, ServerState(), {}, loop)
    protocol.connection_made(transport)
    return protocol, loop, transport


def test_only_a_pause_as_long_as_the_timeout_ends_a_connection() -> None:
    protocol, loop, transport = connected()
    [head] = loop.pending()
    assert head.seconds == 10.0
    head.cancel()
    for _ in range(3):
        protocol.pause_writing()
        [timer] = loop.pending()
        assert timer.seconds == 60.0
        protocol.resume_writing()
        assert loop.pending() == [] and transport.calls == []
    protocol.pause_writing()
    loop.pending()[0].fire()
    assert transport.calls == ["abort"]
    protocol.connection_lost(ConnectionResetError())
    assert loop.pending() == []


def test_an_idle_connection_ends_even_if_its_client_does_not_read() -> None:
    protocol, loop, transport = connected()
    protocol.timeout_keep_alive_handler()
    [_, timer] = loop.pending()
    timer.fire()
    assert transport.calls == ["close", "abort"]
