"""Streams and answers of an application without ``protect``, as tests and other servers mount it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from tests.serving.safety.dummy_server import Dummy, ask

from hasten.serving.event_stream import until_disconnect

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"2")]
DEADLINE = 20.0


class Client:
    """A client that leaves when the test says so."""

    def __init__(self) -> None:
        self.parts, self.left, self.sent = [b"{}"], asyncio.Event(), []
        self.on_event: Any = None

    async def receive(self) -> dict[str, Any]:
        if self.parts:
            return {"type": "http.request", "body": self.parts.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if self.on_event is not None:
            await self.on_event(message)

    async def run(self, app: Any, path: str) -> None:
        scope = {"type": "http", "method": "POST", "path": path, "headers": HEADERS, "query_string": b"", "root_path": ""}
        async with asyncio.timeout(DEADLINE):
            await app(scope, self.receive, self.send)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() - {asyncio.current_task()} == set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def streaming(server: Dummy, number: int, *, waits: bool) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        try:
            for index in range(number):
                yield b"data: %d\n\n" % index
            if waits:
                await asyncio.Event().wait()
        finally:
            server.ended.append("events")

    server.events = events


def test_a_stream_is_complete_and_closed_once() -> None:
    server = Dummy()
    streaming(server, 3, waits=False)
    answer = asyncio.run(ask(server.inner, "POST", "/v1/stream", HEADERS, b"{}"))
    assert answer.status == 200 and answer.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n" and answer.is_complete
    assert answer.header(b"content-type") == b"text/event-stream; charset=utf-8" and answer.header(b"cache-control") == b"no-store"
    assert answer.header(b"content-length") is None
    assert server.ended == ["events", "context"]


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("protected", [False, True])
def test_the_stream_of_a_client_that_leaves_is_closed_once(after: int, protected: bool) -> None:
    """After each of its events, or in the wait for the next."""

    async def scenario() -> tuple[Dummy, Client]:
        server, client = Dummy(), Client()
        streaming(server, 3, waits=True)

        async def leave(message: dict[str, Any]) -> None:
            if len(client.sent) == after + 1:
                client.left.set()

        client.on_event = leave
        await client.run(server.app if protected else server.inner, "/v1/stream")
        return server, client

    server, client = asyncio.run(scenario())
    assert server.ended == ["events", "context"]
    assert not client.sent[-1].get("body") or client.sent[-1]["more_body"]  # not complete


@pytest.mark.parametrize("protected", [False, True])
def test_a_send_that_fails_closes_the_stream(protected: bool) -> None:
    async def scenario() -> Dummy:
        server, client = Dummy(), Client()
        streaming(server, 3, waits=True)

        async def fail(message: dict[str, Any]) -> None:
            if message.get("body") == b"data: 1\n\n":
                raise OSError("the socket is gone")

        client.on_event = fail
        try:
            await client.run(server.app if protected else server.inner, "/v1/stream")
        except (OSError, RuntimeError):
            assert not protected
        return server

    assert asyncio.run(scenario()).ended == ["events", "context"]


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("turns", range(6))
def test_a_cancelled_request_closes_its_stream(protected: bool, turns: int) -> None:
    """As when the server ends."""

    async def scenario() -> Dummy:
        server, client = Dummy(), Client()
        streaming(server, 3, waits=True)
        task = asyncio.create_task(client.run(server.app if protected else server.inner, "/v1/stream"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return server

    assert asyncio.run(scenario()).ended in ([], ["events", "context"])


def test_work_of_a_client_that_has_left_is_cancelled() -> None:
    async def scenario() -> None:
        client, ended = Client(), []
        client.parts.clear()

        async def work() -> None:
            client.left.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("work")

        async with asyncio.timeout(DEADLINE):
            with pytest.raises(ClientDisconnect):
                await until_disconnect(Request({"type": "http"}, client.receive), work())
        assert ended == ["work"]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError, TimeoutError, KeyError])
def test_errors_of_the_work_pass(error: type[Exception]) -> None:
    async def work() -> None:
        raise error("x")

    async def scenario() -> None:
        with pytest.raises(error):
            await until_disconnect(Request({"type": "http"}, Client().receive), work())

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/work"])
def test_an_application_without_protection_ends_work_too(path: str) -> None:
    async def scenario() -> tuple[Dummy, Client]:
        server, client = Dummy(), Client()
        streaming(server, 1, waits=True)

        async def work() -> None:
            try:
                client.left.set()
                await asyncio.Event().wait()
            finally:
                server.ended.append("work")

        server.work = work

        async def leave(message: dict[str, Any]) -> None:
            client.left.set()

        client.on_event = leave
        await client.run(server.inner, path)
        return server, client

    server, _ = asyncio.run(scenario())
    assert server.ended == (["work"] if path == "/v1/work" else ["events", "context"])


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("before", [True, False])
def test_work_that_ends_as_the_client_leaves_is_safe(turns: int, before: bool) -> None:
    """Whichever comes first, no exception is lost in a callback, and the task is not cancelled later."""

    async def scenario() -> None:
        loop, failures, client = asyncio.get_running_loop(), [], Client()
        client.parts.clear()
        loop.set_exception_handler(lambda loop, context: failures.append(context))

        async def work() -> str:
            if before:
                client.left.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            if not before:
                client.left.set()
            return "answer"

        with contextlib.suppress(ClientDisconnect):
            assert await until_disconnect(Request({"type": "http"}, client.receive), work()) == "answer"
        for _ in range(5):
            await asyncio.sleep(0)
        assert failures == [] and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
