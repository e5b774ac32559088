"""``watch``: what is counted and logged of each request, whatever becomes of it, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from tests.serving.metrics.traffic import Watched

from hasten.core.output import RequestMetrics, RequestOutput
from hasten.serving.caller import STATE_KEY, Caller
from hasten.serving.metrics.access_log import AccessLog
from hasten.serving.metrics.server_metrics import REASONS, ServerMetrics
from hasten.serving.metrics.usage import Usage
from hasten.serving.metrics.watch import watch
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

ServeWatched = Callable[..., AbstractContextManager[Watched]]
SECRETS = ("s3cr3t-prompt", "s3cr3t-path", "s3cr3t-key", "s3cr3t-query")


def entries(server: Watched) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.lines]


def test_a_line_says_what_a_request_cost(serve_watched: ServeWatched) -> None:
    with serve_watched() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"prompt": "def watched_by_a_log(a):", "max_tokens": 9}
        answers = [client.post("/generate", json={**body, "stream": stream, "max_tokens": 9 + stream}) for stream in (False, True)]
    plain, streamed = entries(server)
    for entry, answer, num_tokens in ((plain, answers[0], 9), (streamed, answers[1], 10)):
        assert (entry["method"], entry["route"], entry["status"], entry["model"]) == ("POST", "/generate", 200, "demo")
        assert (entry["output_tokens"], entry["disconnected"], entry["complete"]) == (num_tokens, False, True)
        assert entry["bytes_in"] == len(answer.request.content) and entry["bytes_out"] == len(answer.content)
        assert 0 < entry["ttft_ms"] <= entry["duration_ms"]
        assert entry["request_id"] == answer.headers["x-request-id"]
        assert entry["time"] == "2023-11-14T22:13:20.250Z"
        assert "tenant" not in entry
    assert plain["prompt_tokens"] == streamed["prompt_tokens"] > 0
    assert plain["request_id"] != streamed["request_id"]


def test_no_secret_is_logged(serve_watched: ServeWatched) -> None:
    """Neither prompts nor answers, paths, queries or keys; a client's id is escaped and cut."""
    headers = {"authorization": "Bearer s3cr3t-key", "x-api-key": "s3cr3t-key", "x-request-id": 'a"},{\\' + "x" * 500}
    with serve_watched() as server, httpx.Client(base_url=server.url, timeout=60, headers=headers) as client:
        client.post("/generate?q=s3cr3t-query", json={"prompt": "s3cr3t-prompt", "max_tokens": 4})
        client.get("/items/s3cr3t-path")
        client.get("/s3cr3t-path/s3cr3t-path")
        client.post("/generate", content=b'{"prompt": "s3cr3t-prompt", ')
        client.post("/generate", json={"prompt": "x", "model": "s3cr3t-prompt"})
        client.request("PROPFIND", "/busy")
    text = "".join(server.lines)
    assert not [secret for secret in (*SECRETS, "PROPFIND") if secret in text]
    assert len(server.lines) == 6 and text.count("\n") == 6
    assert all(" " <= character <= "~" for character in text.replace("\n", ""))
    assert {entry["client_request_id"] for entry in entries(server)} == {headers["x-request-id"][:128]}
    assert [entry.get("route") for entry in entries(server)] == [
        "/generate",
        "/items/{secret}",
        None,
        "/generate",
        "/generate",
        "/busy",
    ]
    assert not [key for key in server.state.metrics.requests if any(secret in str(key) for secret in (*SECRETS, "PROPFIND"))]


def test_every_end_is_counted(serve_watched: ServeWatched) -> None:
    with serve_watched() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        statuses = [client.get(path).status_code for path in ("/busy", "/nowhere", "/generate", "/items/a", "/items/b", "/boom")]
    assert statuses == [429, 404, 405, 200, 200, 500]
    assert server.state.metrics.requests == {
        ("/busy", "GET", 429): 1,
        ("unmatched", "GET", 404): 1,
        ("/generate", "GET", 405): 1,
        ("/boom", "GET", 500): 1,
        ("/items/{secret}", "GET", 200): 2,
    }
    assert server.state.metrics.rejected == {"rate_limit": 1, "not_found": 1, "method_not_allowed": 1}
    assert server.state.metrics.num_in_flight == 0
    assert sum(sum(histogram.counts) for histogram in server.state.metrics.seconds.values()) == 6
    assert [entry["status"] for entry in entries(server)] == statuses
    assert all(entry["request_id"].startswith("req_") for entry in entries(server))


def wait_for_lines(server: Watched, number: int) -> None:
    end = time.monotonic() + 30
    while len(server.lines) < number:
        assert time.monotonic() < end, server.lines
        time.sleep(0.005)


def test_a_client_that_leaves_is_logged(serve_watched: ServeWatched) -> None:
    with serve_watched() as server:
        body = {"prompt": "def leave(", "max_tokens": 400, "stream": True}
        with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=60) as answer:
            next(answer.iter_bytes())
        wait_for_lines(server, 1)
    (entry,) = entries(server)
    assert (entry["disconnected"], entry["complete"], entry["status"]) == (True, False, 200)
    assert server.state.metrics.num_disconnects == 1 and server.state.metrics.num_in_flight == 0


# ---------------------------------------------------------------- without a server


def scope(**changes: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/x", "headers": [], **changes}


def run(app: Any, messages: list[dict[str, Any]], **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any], ServerMetrics]:
    """Return what the application sent, its log entry and the counters. The clock moves a quarter of a second per reading."""
    state, lines, sent = ServerState(ServerOptions(), None), [], []  # type: ignore[arg-type]
    now = iter(range(100))

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    watched = watch(app, state, log=AccessLog(lines.append), clock=lambda: next(now) / 4)
    with contextlib.suppress(RuntimeError, asyncio.CancelledError):
        asyncio.run(watched(scope(**changes), receive, send))
    (line,) = lines
    assert line.endswith("}\n") and all(" " <= character <= "~" for character in line[:-1])
    return sent, json.loads(line), state.metrics


async def answer(scope: Any, receive: Any, send: Any, headers: tuple[Any, ...] = ()) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"12345", "more_body": True})
    await send({"type": "http.response.body", "body": b"678"})


def test_the_body_and_the_time_are_measured() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await answer(scope, receive, send)

    parts = [{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.request", "body": b"de"}]
    sent, entry, metrics = run(app, parts)
    assert (entry["bytes_in"], entry["bytes_out"], entry["duration_ms"]) == (5, 8, 250.0)
    assert (metrics.received_bytes, metrics.sent_bytes) == (5, 8)
    assert sent[0]["headers"] == [(b"x-request-id", entry["request_id"].encode())]


@pytest.mark.parametrize("name", [b"x-request-id", b"Request-Id"])
def test_an_id_of_the_application_is_kept(name: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(scope, receive, send, ((name, b"req_1"),))

    sent, entry, _ = run(app, [])
    assert entry["request_id"] == "req_1" and sent[0]["headers"] == ((name, b"req_1"),)


@pytest.mark.parametrize(
    ("messages", "error", "status"),
    [
        ([{"type": "http.disconnect"}], None, 499),
        ([{"type": "http.disconnect"}], asyncio.CancelledError(), 499),
        ([{"type": "http.request"}], RuntimeError("planted"), 500),
        ([{"type": "http.request"}], asyncio.CancelledError(), 500),
    ],
)
def test_requests_without_an_answer(messages: list[dict[str, Any]], error: BaseException | None, status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if error is not None:
            raise error

    sent, entry, metrics = run(app, messages)
    assert sent == [] and entry["status"] == status and not entry["complete"]
    assert entry["disconnected"] is (status == 499)
    assert metrics.num_in_flight == 0 and metrics.requests["unmatched", "GET", status] == 1


def test_leaving_after_the_answer_is_no_disconnect() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(scope, receive, send)
        await receive()

    _, entry, metrics = run(app, [{"type": "http.disconnect"}])
    assert entry["complete"] and not entry["disconnected"] and metrics.num_disconnects == 0


def test_a_tenant_has_eight_digits_and_strange_ids_are_escaped() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"][STATE_KEY] = Caller("0123456789abcdef" * 4)
        await answer(scope, receive, send)

    identifier = b'\x00\x7f\x1b[31m\xff"'
    _, entry, _ = run(app, [], headers=[(b"x-request-id", identifier)], method="\u2028")
    assert entry["tenant"] == "01234567"
    assert entry["client_request_id"] == identifier.decode("latin-1")
    assert entry["method"] == "OTHER"


def test_other_scopes_pass_unseen() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    state, lines = ServerState(ServerOptions(), None), []  # type: ignore[arg-type]
    asyncio.run(watch(app, state, log=AccessLog(lines.append))({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"] and not lines and not state.metrics.requests


def test_the_log_goes_to_standard_output_or_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    for access_log, number in (("json", 1), ("off", 0)):
        state = ServerState(ServerOptions(access_log=access_log), None)  # type: ignore[arg-type]

        async def send(message: Any) -> None: ...

        asyncio.run(watch(answer, state)(scope(), None, send))  # type: ignore[arg-type]
        captured = capsys.readouterr()
        assert captured.out.count('"status":200') == number and captured.err == ""
        assert state.metrics.requests["unmatched", "GET", 200] == 1  # counted all the same


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device"), ValueError("closed file")])
def test_a_log_that_cannot_be_written_harms_no_request(error: Exception) -> None:
    def write(line: str) -> None:
        raise error

    log = AccessLog(write)
    log.add({"status": 200})
    state = ServerState(ServerOptions(), None)  # type: ignore[arg-type]
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(watch(answer, state, log=log)(scope(), None, send))  # type: ignore[arg-type]
    assert len(sent) == 3


def test_usage_adds_up_and_takes_the_first_token_of_all() -> None:
    def output(arrival: float, first: float | None, **counts: int) -> RequestOutput:
        metrics = RequestMetrics(arrival=arrival, first_token=first, **counts)
        return RequestOutput(request_id="", prompt=None, prompt_token_ids=(), outputs=(), finished=True, metrics=metrics)

    usage = Usage()
    usage.add(output(1.0, None, num_prompt_tokens=5))
    usage.add(output(1.0, 3.0, num_prompt_tokens=7, num_cached_tokens=4, num_output_tokens=2))
    usage.add(output(2.0, 2.5, num_prompt_tokens=1, num_cached_tokens=1, num_output_tokens=3))
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens, usage.ttft, usage.num_outputs) == (13, 5, 5, 0.5, 3)


def test_every_refusal_has_a_reason() -> None:
    from hasten.serving.api_error import ErrorKind

    refusals = {kind.value for kind in ErrorKind if kind is not ErrorKind.INTERNAL}
    assert refusals <= set(REASONS)
