"""The ends of streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from hasten.core.errors import InvalidRequest
from hasten.serving.api_error import invalid
from hasten.serving.openai.events import event, with_end


async def events(count: int, fault: Exception | None = None) -> AsyncGenerator[bytes, None]:
    for place in range(count):
        yield event({"place": place})
    if fault is not None:
        raise fault


async def collect(stream: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [each async for each in stream]


def test_an_event_is_one_line_of_json() -> None:
    assert event({"text": "a\n\u2028é"}) == 'data: {"text":"a\\n\\u2028é"}\n\n'.encode()


def test_a_stream_that_succeeds_ends_in_done() -> None:
    assert asyncio.run(collect(with_end(events(2))))[1:] == [b'data: {"place":1}\n\n', b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("fault", "message", "kind"),
    [
        (invalid("wrong", param="a"), "wrong", "invalid_request_error"),
        (InvalidRequest("wrong"), "wrong.", "invalid_request_error"),
        (RuntimeError("secret"), "the server failed on this request; its log says why", "server_error"),
    ],
)
def test_an_error_ends_a_stream_without_done(fault: Exception, message: str, kind: str) -> None:
    found = asyncio.run(collect(with_end(events(1, fault))))
    assert len(found) == 2 and found[0] == b'data: {"place":0}\n\n'
    error = json.loads(found[1].removeprefix(b"data: "))["error"]
    assert (error["message"], error["type"]) == (message, kind)


def test_an_error_before_the_first_event_is_raised() -> None:
    with pytest.raises(RuntimeError, match="secret"):
        asyncio.run(collect(with_end(events(0, RuntimeError("secret")))))


def test_the_log_has_no_text_of_a_failed_stream(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(collect(with_end(events(1, ValueError("a secret prompt")))))
    assert "ValueError" in caplog.text and "secret" not in caplog.text
