"""Bodies over the limits are refused while they come."""

import asyncio
from typing import Any

import pytest
from tests.serving.safety.dummy_server import Answer, Dummy, ask

from hasten.serving.server_options import ServerOptions

HOST, JSON = (b"host", b"localhost"), (b"content-type", b"application/json")
PATH = "/v1/completions"


def run(headers: list[tuple[bytes, bytes]], body: bytes = b"{}", method: str = "POST", **options: object) -> tuple[Answer, bool]:
    server = Dummy(ServerOptions(**options))
    answer = asyncio.run(ask(server.app, method, PATH, [HOST, *headers], body))
    return answer, bool(server.reached)


def length(number: int | str) -> tuple[bytes, bytes]:
    return (b"content-length", str(number).encode())


@pytest.mark.parametrize("media_type", [b"application/json", b"Application/JSON; charset=utf-8", b"application/json;charset=UTF-8"])
def test_json_passes(media_type: bytes) -> None:
    assert run([length(2), (b"content-type", media_type)])[1]
    assert run([(b"transfer-encoding", b"chunked"), (b"content-type", media_type)])[1]


@pytest.mark.parametrize(
    "media_type",
    [b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"", b"application/jsonx",
    b"application/xml", b"text/plain; application/json", b"application/json, text/plain", None],
)  # fmt: skip
@pytest.mark.parametrize("framing", [length(2), (b"transfer-encoding", b"chunked")])
def test_other_types_are_refused(media_type: bytes | None, framing: tuple[bytes, bytes]) -> None:
    """Those that a page sends without a preflight among them, and the body without a type."""
    answer, reached = run([framing, *([(b"content-type", media_type)] if media_type is not None else [])])
    assert answer.status == 415 and not reached


def test_a_request_without_body_needs_no_type() -> None:
    assert run([], body=b"")[1] and run([length(0)], body=b"")[1]


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip", b"GZIP"])
def test_compressed_bodies_are_refused(coding: bytes) -> None:
    answer, reached = run([length(2), JSON, (b"content-encoding", coding)])
    assert answer.status == 415 and not reached
    assert run([length(2), JSON, (b"content-encoding", b"identity")])[1]


@pytest.mark.parametrize(("size", "expected"), [(1000, 200), (1001, 413), (100_000, 413)])
@pytest.mark.parametrize(
    "framing", [lambda size: length(size), lambda size: length(10), lambda size: (b"transfer-encoding", b"chunked")]
)
def test_bytes_are_counted_whatever_the_headers_say(size: int, expected: int, framing: Any) -> None:
    body = b'{"a":"' + b"a" * (size - 8) + b'"}'
    answer, reached = run([framing(size), JSON], body, max_body_bytes=1000)
    assert (answer.status, reached) == (expected, expected == 200)
    assert (answer.header(b"connection") == b"close") == (expected == 413)


@pytest.mark.parametrize("number", ["-1", "1e3", "0x10", "", "9" * 30, "１"])
def test_a_content_length_has_to_be_a_number(number: str) -> None:
    answer, reached = run([length(number), JSON])
    assert answer.status in (400, 413) and not reached


def test_memory_is_bounded_while_a_body_comes() -> None:
    """The body is refused at the part that exceeds the limit; no further one is asked for."""
    asked: list[int] = []

    async def receive() -> dict[str, Any]:
        asked.append(1)
        return {"type": "http.request", "body": b"a" * 100, "more_body": True}

    async def scenario() -> int | None:
        server, sent = Dummy(ServerOptions(max_body_bytes=1000)), []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [HOST, JSON, (b"transfer-encoding", b"chunked")]}
        await server.app({"query_string": b"", "root_path": "", "scheme": "http", **scope}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(scenario()) == 413 and len(asked) == 11


@pytest.mark.parametrize("pauses", [True, False])
def test_a_slow_body_ends_with_408(pauses: bool) -> None:
    """Whether its client pauses for ever, or sends byte after byte."""

    async def receive() -> dict[str, Any]:
        await (asyncio.Event().wait() if pauses else asyncio.sleep(0))
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def scenario() -> int | None:
        server, sent = Dummy(ServerOptions(body_timeout=0.1)), []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [HOST, JSON, (b"transfer-encoding", b"chunked")]}
        await server.app({"query_string": b"", "root_path": "", "scheme": "http", **scope}, receive, send)
        assert (b"connection", b"close") in sent[0]["headers"]
        return sent[0]["status"]

    async def bounded() -> int | None:
        async with asyncio.timeout(20):
            return await scenario()

    assert asyncio.run(bounded()) == 408


def test_the_bodies_of_all_requests_are_bounded() -> None:
    """Those that are being read, and those that are kept while their requests run; each is counted until its request has ended."""

    async def scenario() -> None:
        server, finish, running = Dummy(ServerOptions(max_body_bytes=1000, max_open_body_bytes=2500)), asyncio.Event(), 0

        async def work() -> str:
            nonlocal running
            running += 1
            await finish.wait()
            return "done"

        server.work = work
        body, headers = b" " * 900, [HOST, JSON, length(900)]
        held = [asyncio.create_task(ask(server.app, "POST", "/v1/work", headers, body)) for _ in range(2)]
        while running < 2:
            await asyncio.sleep(0)
        refused = await ask(server.app, "POST", "/v1/work", headers, body)
        assert refused.status == 503 and refused.header(b"retry-after") == b"1" and running == 2
        held.append(asyncio.create_task(ask(server.app, "POST", "/v1/work", headers, body[:700])))
        while running < 3:
            await asyncio.sleep(0)
        held[0].cancel()
        await asyncio.wait(held[:1])
        held.append(asyncio.create_task(ask(server.app, "POST", "/v1/work", headers, body)))
        while running < 4:
            await asyncio.sleep(0)
        finish.set()
        assert [answer.status for answer in await asyncio.gather(*held[1:])] == [200] * 3
        assert server.app._bodies.num_open_bytes == 0

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())
