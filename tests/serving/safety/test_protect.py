"""Answers that end: at their deadline, when the client leaves or does not read, and when the application fails."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from tests.serving.live_server import live_server
from tests.serving.safety.dummy_server import Dummy, ask

from hasten.core.errors import InvalidOption, InvalidRequest
from hasten.serving.api_error import ApiError, ErrorKind
from hasten.serving.safety.http_protocol import uvicorn_settings
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions

DEADLINE = 20.0
HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"2")]
STREAMS = {"/v1/stream": "data: ", "/v1/messages/stream": "event: error\ndata: "}


class Flow:
    """A stream whose events wait for the test."""

    def __init__(self, server: Dummy) -> None:
        self.server = server
        self.has_ended = threading.Event()
        server.events = self.events

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()
            yield b"data: 2\n\n"
        finally:
            self.server.ended.append("events")
            self.has_ended.set()


def run(server: Dummy, path: str) -> Any:
    return asyncio.run(ask(server.app, "POST", path, HEADERS, b"{}"))


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_beyond_the_deadline_ends_with_an_error_event(path: str) -> None:
    server = Dummy(ServerOptions(request_timeout=0.05))
    Flow(server)
    answer = run(server, path)
    first, error = answer.body.decode().split("\n\n")[:2]
    assert answer.status == 200 and answer.is_complete and first == "data: 1" and error.startswith(STREAMS[path])
    body = json.loads(error.partition("data: ")[2])
    assert "took longer than 0.05 seconds" in body["error"]["message"]
    assert server.ended == ["events", "context"]


def test_an_answer_beyond_the_deadline_is_an_error() -> None:
    server, ended = Dummy(ServerOptions(request_timeout=0.05)), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    server.work = work
    answer = run(server, "/v1/work")
    assert answer.status == 408 and b"took longer than 0.05 seconds" in answer.body and ended == ["work"]


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("error", [InvalidRequest("a guide failed"), ApiError(ErrorKind.UNAVAILABLE, "the engine has ended")])
def test_an_error_after_the_first_event_is_an_event(path: str, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    server = Dummy()

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise error

    server.events = events
    answer = run(server, path)
    last = answer.body.decode().split("\n\n")[1]
    assert answer.is_complete and last.startswith(STREAMS[path]) and str(error) in last and not caplog.text
    assert server.ended == ["context"]


def test_bugs_show_neither_their_message_nor_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    server = Dummy()
    secret = "the secret prompt"

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise ValueError(secret)

    async def work() -> None:
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise KeyError(secret) from error

    server.events, server.work = events, work
    stream, single = run(server, "/v1/stream"), run(server, "/v1/work")
    assert b"the server failed on this request" in stream.body and stream.is_complete
    assert single.status == 500 and b"the server failed on this request" in single.body
    assert secret not in caplog.text + str(stream) + str(single)
    for text in ("builtins.ValueError", "builtins.KeyError", "in work", "in events"):  # what a reader of the log needs
        assert text in caplog.text


def test_an_answer_that_is_no_stream_of_events_is_cut() -> None:
    """Its client sees that the end is missing; an event would be taken for a part of it."""
    server = Dummy(ServerOptions(request_timeout=0.05))

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
        await send({"type": "http.response.body", "body": b"{}\n", "more_body": True})
        await asyncio.Event().wait()

    answer = asyncio.run(ask(protect(inner, server.state, server.surfaces), "POST", "/v1/work", HEADERS, b"{}"))
    assert answer.status == 200 and answer.body == b"{}\n" and not answer.is_complete


def test_a_failure_after_the_answer_is_no_part_of_it() -> None:
    server = Dummy()

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": False})
        raise ValueError("too late")

    answer = asyncio.run(ask(protect(inner, server.state, server.surfaces), "POST", "/v1/work", HEADERS, b"{}"))
    assert answer.body == b"data: 1\n\n" and answer.is_complete


def test_an_error_before_the_first_event_is_a_status() -> None:
    server, closed = Dummy(), []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            raise InvalidRequest("no such thing")
            yield b""
        finally:
            closed.append("events")

    server.events = events
    answer = run(server, "/v1/stream")
    assert answer.status == 400 and b"no such thing" in answer.body and closed == ["events"] and server.ended == ["context"]


def test_a_stream_without_events_is_complete() -> None:
    server = Dummy()

    async def events() -> AsyncGenerator[bytes, None]:
        for event in ():
            yield event

    server.events = events
    answer = run(server, "/v1/stream")
    assert answer.status == 200 and answer.body == b"" and answer.is_complete and server.ended == ["context"]


def test_websockets_are_refused_and_lifespans_pass() -> None:
    server, sent, seen = Dummy(), [], []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    app = protect(inner, server.state, server.surfaces)
    for kind in ("websocket", "lifespan", "other"):
        asyncio.run(app({"type": kind, "path": "/v1/models", "headers": []}, None, send))
    assert seen == ["lifespan"] and sent == [{"type": "websocket.close", "code": 1008}] * 2


def test_wrong_options_are_found_at_the_start() -> None:
    with pytest.raises(InvalidOption):
        Dummy(ServerOptions(allowed_hosts=("a b",)))


@contextlib.contextmanager
def connection(url: str, path: str, *, buffer: int | None = None) -> Any:
    """A client that has sent a request, and reads when the test says so."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as client:
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(DEADLINE)
        client.connect((host, int(port)))
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
        client.sendall(head.encode())
        yield client


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/work"])
def test_work_ends_when_the_client_leaves(path: str, caplog: pytest.LogCaptureFixture) -> None:
    server = Dummy()
    flow, has_begun, has_ended = Flow(server), threading.Event(), threading.Event()

    async def work() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    server.work = work
    with caplog.at_level(logging.INFO), live_server(server.app, **uvicorn_settings(server.options)) as url:
        with connection(url, path) as client:
            if path == "/v1/work":
                assert has_begun.wait(DEADLINE)
            else:
                assert b"data: 1" in receive_until(client, b"data: 1")
        assert (has_ended if path == "/v1/work" else flow.has_ended).wait(DEADLINE)
        assert httpx.get(f"{url}/health").status_code == 200
    assert "Traceback" not in caplog.text and "ERROR" not in caplog.text, caplog.text


def test_work_before_the_first_event_ends_when_the_client_leaves() -> None:
    server, has_begun, has_ended = Dummy(), threading.Event(), threading.Event()

    async def events() -> AsyncGenerator[bytes, None]:
        has_begun.set()
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            has_ended.set()

    server.events = events
    with live_server(server.app, **uvicorn_settings(server.options)) as url:
        with connection(url, "/v1/stream"):
            assert has_begun.wait(DEADLINE)
        assert has_ended.wait(DEADLINE)
    assert server.ended == ["context"]


def receive_until(client: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        part = client.recv(65_536)
        assert part, received
        received += part
    return received


@pytest.mark.parametrize("size", [5 << 20, 40 << 20])
def test_clients_see_why_a_large_body_is_refused(size: int) -> None:
    """Although the server closes the connection while they still send."""
    server = Dummy()
    with live_server(server.app, **uvicorn_settings(server.options)) as url:
        for content in (b" " * size, iter([b" " * 65_536] * (size // 65_536))):
            answer = httpx.post(
                f"{url}/v1/completions", content=content, headers={"content-type": "application/json"}, timeout=DEADLINE
            )
            assert answer.status_code == 413 and "allowed: up to 4194304" in answer.json()["error"]["message"]
        answer = httpx.post(f"{url}/v1/completions", content=b" " * size, headers={"content-type": "text/plain"}, timeout=DEADLINE)
        assert answer.status_code in (413, 415)


def test_connections_stay_open_between_requests() -> None:
    server = Dummy()
    with live_server(server.app, **uvicorn_settings(server.options)) as url, httpx.Client(base_url=url) as client:
        for _ in range(3):
            answers = [client.get("/v1/models"), client.post("/v1/completions", json={"a": 1}), client.post("/tokenize")]
            assert [answer.status_code for answer in answers] == [200] * 3
            assert not any("connection" in answer.headers or "server" in answer.headers for answer in answers)


@pytest.mark.parametrize("leaves", ["before", "after"])
def test_work_that_ends_as_the_client_leaves_is_safe(leaves: str) -> None:
    """The two race in every order; what remains is either the answer or nothing, and no task."""
    server = Dummy()

    async def scenario(make: Callable[[], Any]) -> list[Any]:
        left, sent, parts = asyncio.Event(), [], [b"{}"]

        async def receive() -> dict[str, Any]:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        server.work = lambda: make(left)
        scope = {"type": "http", "method": "POST", "path": "/v1/work", "headers": HEADERS, "query_string": b"", "root_path": ""}
        async with asyncio.timeout(DEADLINE):
            await server.app(scope, receive, send)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return sent

    for turns in range(8):

        async def work(left: asyncio.Event, turns: int = turns) -> str:
            if leaves == "before":
                left.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            if leaves == "after":
                left.set()
            return "answer"

        sent = asyncio.run(scenario(work))
        assert not sent or (sent[0]["status"], sent[-1]["body"]) == (200, b'"answer"'), sent


def test_client_disconnect_is_no_error_of_the_application(caplog: pytest.LogCaptureFixture) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ClientDisconnect

    server = Dummy()
    app = protect(inner, server.state, server.surfaces)
    answer = asyncio.run(ask(app, "POST", "/v1/work", HEADERS, b"{}"))
    assert answer.status is None and not caplog.text
