"""Bodies against their schema: every boundary ends in a value or in an error of one short sentence."""

import asyncio
import gc
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from tests.serving.safety.dummy_server import Dummy

from hasten.core.errors import MAX_MESSAGE
from hasten.serving import json_body
from hasten.serving.api_error import ApiError
from hasten.serving.json_body import MAX_INLINE, parse_body, read_body

DEADLINE = 20.0
TICK = 0.002  # seconds


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str | list[int] = ""
    n: int = Field(1, ge=1, le=8)
    temperature: float = Field(1.0, ge=0, le=2)
    stop: list[str] = Field([], max_length=4)
    logit_bias: dict[str, float] = Field({}, max_length=1024)
    nested: dict[str, Any] = {}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def refusal(body: Any) -> ApiError | None:
    try:
        parse_body(body if isinstance(body, bytes) else json.dumps(body).encode(), Schema, 64)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": 10**39}, "n"),
        ({"n": -(10**38)}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "x" * 100_000}, "n"),
        ({"n": [1]}, "n"),
        ({"n": {}}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [1.5]}, "prompt.0"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a"] * 100_000}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"logit_bias": {str(index): 0 for index in range(1025)}}, "logit_bias"),
        ({"logit_bias": {"k" * 100_000: "x"}}, "logit_bias." + "k" * 186 + "..."),
        ({"logit_bias": {"\x1b[31m\n": "x"}}, "logit_bias.\\x1b[31m "),
        ({"x" * 100_000: 1}, "x" * 197 + "..."),
        ({"unknown": 1}, "unknown"),
        ({"nested": nested(63)}, None),
        (b'{"nested":' + b'{"a":' * 100_000 + b"}" * 100_001, None),
        ([], None),
        ("text", None),
        (1, None),
        (None, None),
        (b"", None),
        (b"\x00", None),
        (b"{" + b'"a":1,' * 100_000 + b'"b":1}', None),
    ],
)
def test_what_is_out_of_bounds_is_an_error_that_names_the_field(body: Any, param: str | None) -> None:
    error = refusal(body)
    assert error is not None and error.status == 400 and error.param == param
    assert len(error.message) <= MAX_MESSAGE / 2 and error.message.isprintable()
    assert param is None or param in error.message


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 1},
        {"n": 8},
        {"n": None, "temperature": None},
        {"temperature": 0},
        {"temperature": 2.0},
        {"prompt": "x" * 4_000_000},
        {"prompt": list(range(300_000))},
        {"stop": ["a"] * 4},
        {"logit_bias": {str(index): -100.0 for index in range(1024)}},
        {"nested": nested(62)},
        {"prompt": "\U0001f600\x00\u2028"},
    ],
)
def test_what_is_within_bounds_passes(body: dict[str, Any]) -> None:
    assert refusal(body) is None


def test_errors_do_not_repeat_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    secret = "my secret prompt"
    with caplog.at_level(logging.DEBUG):
        for body in (
            {"n": secret},
            {"prompt": {"a": secret}},
            {"stop": secret},
            f'{{"prompt": "{secret}'.encode(),
            {"temperature": [secret]},
        ):
            error = refusal(body)
            assert error is not None and secret not in error.message
    assert secret not in caplog.text


def request_with(server: Dummy, body: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": [], "app": server.inner}, receive)


@pytest.mark.parametrize(("size", "is_inline"), [(10, True), (MAX_INLINE, True), (MAX_INLINE + 1, False), (4 << 20, False)])
def test_large_bodies_are_read_beside_the_event_loop(size: int, is_inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def parse(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return parse_body(*arguments)

    monkeypatch.setattr(json_body, "parse_body", parse)
    body = b'{"prompt":"' + b"a" * (size - 13) + b'"}' if size > 13 else b"{}"
    found = asyncio.run(read_body(request_with(Dummy(), body), Schema))
    assert len(found.prompt) == max(0, size - 13)
    assert (threads == [threading.main_thread()]) == is_inline and len(threads) == 1


def hostile_bodies() -> list[bytes]:
    size = (4 << 20) - 100
    return [
        b'{"prompt":"' + b"a" * size + b'"}',
        b'{"prompt":"' + b"\\ud83d\\ude00" * (size // 12) + b'"}',
        b'{"prompt":[' + b"1," * (size // 2) + b"1]}",
        b'{"nested":{"a":[' + b"[]," * 65_000 + b"1]}}",
        b'{"nested":' + b'{"a":' * (size // 5),
        b'{"a":[' * 10_000,
        b"[" * size,
        b'"' * size,
    ]


async def lags_of(bodies: list[bytes]) -> tuple[list[float], float]:
    """Return by how much the event loop was late, each time that it should have run, and the seconds in which bodies were read."""
    server, loop, lags = Dummy(), asyncio.get_running_loop(), []

    async def read(body: bytes) -> None:
        with suppress(ApiError):
            await read_body(request_with(server, body), Schema)

    start = loop.time()
    task = asyncio.gather(*(read(body) for body in bodies))
    async with asyncio.timeout(DEADLINE * 3):
        while not task.done():
            before = loop.time()
            await asyncio.wait([task], timeout=TICK)
            lags.append(loop.time() - before - TICK)
    return lags, loop.time() - start


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Keep the garbage collector from looking at all modules, as a server does once it has started."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_heap")
def test_the_event_loop_goes_on_while_large_bodies_are_read() -> None:
    """The bound is a share of the time, because it has to hold whatever else runs on the machine."""
    lags, seconds = asyncio.run(lags_of(hostile_bodies()))
    assert max(lags) < seconds / 2 and len(lags) > 10


@pytest.mark.usefixtures("frozen_heap")
def test_a_parser_in_the_event_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: all bodies are parsed in the loop."""
    monkeypatch.setattr(json_body, "MAX_INLINE", 1 << 30)
    lags, seconds = asyncio.run(lags_of(hostile_bodies()[:4]))
    assert max(lags) > seconds / 2
