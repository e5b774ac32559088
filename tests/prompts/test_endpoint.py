"""Endpoints over real sockets: what is sent and read, every way to fail in one sentence, and a key that is shown nowhere."""

from __future__ import annotations

import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from tests.prompts.endpoint_server import Asked, completion, send, serve

from hasten.core.errors import MAX_MESSAGE, HastenError, InvalidOption
from hasten.prompts import endpoint as endpoint_module
from hasten.prompts.endpoint import KEY_VARIABLE, MAX_ANSWER, MAX_TRIES, Endpoint, EndpointRefused, open_endpoint

Answer = Callable[[BaseHTTPRequestHandler, Asked], None]
KEY = "sk-secret-1234"


def always(content: object, status: int = 200, **headers: str) -> Answer:
    return lambda handler, asked: send(handler, content, status, **headers)


def test_a_question_is_sent_as_the_interface_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with serve(always(completion("Zürich 🎉"))) as server:
        found = open_endpoint(server.url, "some/model").chat("Question 问?", temperature=0.5, seed=3)
        (asked,) = server.asked
    assert (found.text, found.num_tokens, found.first_logprobs) == ("Zürich 🎉", 42, {})
    assert asked.path == "/v1/chat/completions" and asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "some/model",
        "messages": [{"role": "user", "content": "Question 问?"}],
        "stream": False,
        "temperature": 0.5,
        "seed": 3,
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
    ],
)
def test_the_path_is_that_of_openais_client(path: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with serve(always(completion("x"))) as server:
        open_endpoint(server.url.removesuffix("/v1") + path, "m").chat("q")
        assert server.asked[0].path == expected and "Authorization" not in server.asked[0].headers


def test_a_stream_of_chunks_and_an_answer_without_a_length_are_read() -> None:
    data = json.dumps(completion("x" * 3000)).encode()

    def chunked(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(data), 100):
            part = data[start : start + 100]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    def until_the_end(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + data)

    for answer in (chunked, until_the_end):
        with serve(answer) as server:
            assert Endpoint(server.url, "m").chat("q").text == "x" * 3000


def test_an_answer_of_thoughts_alone_is_empty() -> None:
    with serve(always({"choices": [{"message": {"content": None, "reasoning_content": "hm"}}]})) as server:
        assert Endpoint(server.url, "m").chat("q").text == ""


def test_logprobs_of_the_first_token_are_read() -> None:
    tops = [{"token": " Good", "logprob": -0.5}, {"token": "bad", "logprob": -1}, {"token": "bad", "logprob": -9.0}]
    with serve(always(completion("good", logprobs={"content": [{"token": "good", "top_logprobs": tops}]}))) as server:
        assert Endpoint(server.url, "m").chat("q").first_logprobs == {" Good": -0.5, "bad": -1.0}


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        3,
        [],
        {},
        {"content": None},
        {"content": []},
        {"content": [{"top_logprobs": None}]},
        {"content": [{"top_logprobs": [{"token": "x"}, 3]}]},
        {"content": [{"top_logprobs": [{"token": "x", "logprob": value} for value in (math.nan, 10**400, True, "1", 5.0)]}]},
        {"content": [{"top_logprobs": [{"token": value, "logprob": -1.0} for value in (3, None, "\ud800")]}]},
    ],
)
def test_broken_logprobs_are_none(logprobs: object) -> None:
    with serve(always(completion("good", logprobs=logprobs))) as server:
        assert Endpoint(server.url, "m").chat("q").first_logprobs == {}


@pytest.mark.parametrize("usage", [None, 3, {}, {"total_tokens": -1}, {"total_tokens": 10**400}, {"total_tokens": True}])
def test_broken_counts_are_zero(usage: object) -> None:
    with serve(always({**completion("x"), "usage": usage})) as server:
        assert Endpoint(server.url, "m").chat("q").num_tokens == 0


@pytest.mark.parametrize(
    "content",
    [
        "<html><body>Welcome</body></html>",
        "",
        b"\xff\xfe\x00",
        "[" * 100_000,
        "3",
        "null",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": {"0": 1}},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": ["x"]}}]},
        '{"choices": [{"message": {"content": "\\ud800"}}]}',
    ],
)
def test_nonsense_is_one_sentence(content: object) -> None:
    with serve(always(content)) as server, pytest.raises(HastenError, match="gives no chat completion") as caught:
        Endpoint(server.url, "m").chat("q")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= MAX_MESSAGE


@pytest.mark.parametrize(
    ("status", "content", "key", "message"),
    [
        (401, {"error": {"message": f"Incorrect key {KEY}"}}, KEY, r"refuses the API key: got status 401, Incorrect key \.\.\."),
        (401, "", None, rf"needs an API key: got status 401, no message\. Set the environment variable {KEY_VARIABLE}"),
        (401, {"error": {"message": f"{'x' * 195} {KEY}"}}, KEY, r"x{195} \.\.\."),
        (403, "<html>\n no", KEY, "refuses the API key: got status 403, <html> no"),
        (404, {"error": "no model m"}, None, "refuses the request: got status 404, no model m"),
        (400, {"error": {"message": 3}}, None, "got status 400, 3"),
        (418, b"\xff" * 10_000, None, "got status 418"),
        (204, "", None, "refuses the request: got status 204"),
    ],
)
def test_a_refusal_is_one_sentence_without_the_key(status: int, content: object, key: str | None, message: str) -> None:
    with serve(always(content, status)) as server, pytest.raises(EndpointRefused, match=message) as caught:
        Endpoint(server.url, "m", api_key=key).chat("q")
    assert caught.value.status == status and KEY not in str(caught.value) and len(server.asked) == 1


def test_a_redirect_is_not_followed() -> None:
    with serve(always(completion("x"))) as other, serve(always("", 307, Location=other.url)) as server:
        with pytest.raises(EndpointRefused, match="redirects to another URL: got status 307, 'http://127"):
            Endpoint(server.url, "m", api_key=KEY).chat("q")
        assert other.asked == []


def test_a_busy_endpoint_is_asked_again_and_waits_are_as_it_says() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    replies: list[tuple[int, dict[str, str]]] = [(429, {"Retry-After": "7"}), (503, {}), (500, {"Retry-After": later}), (200, {})]
    waits: list[float] = []

    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        status, headers = replies.pop(0)
        send(handler, completion("at last"), status, **headers)

    with serve(answer) as server:
        assert Endpoint(server.url, "m", sleep=waits.append).chat("q").text == "at last"
    assert waits[:2] == [7.0, 2.0] and 30 < waits[2] <= 50


@pytest.mark.parametrize(
    ("retry_after", "num_asked"),
    [(None, MAX_TRIES), ("99999", 1), ("never", MAX_TRIES), ("9" * 4000, MAX_TRIES), ("-1", MAX_TRIES)],
)
def test_tries_and_waits_are_bounded(retry_after: str | None, num_asked: int) -> None:
    waits: list[float] = []
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    with serve(always("overloaded", 503, **headers)) as server:
        with pytest.raises(EndpointRefused, match="is busy or fails: got status 503, overloaded"):
            Endpoint(server.url, "m", sleep=waits.append).chat("q")
        assert len(server.asked) == num_asked
    assert waits == [1.0, 2.0, 4.0, 8.0][: num_asked - 1]


def test_an_endpoint_that_is_down_is_one_sentence() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # does not listen
        with pytest.raises(HastenError, match="cannot be reached: got Connection refused"):
            Endpoint(f"http://127.0.0.1:{reserved.getsockname()[1]}", "m").chat("q")
    with pytest.raises(HastenError, match="cannot be reached"):
        Endpoint(f"http://{'a' * 70}.invalid", "m").chat("q")


def hangs(handler: BaseHTTPRequestHandler, server: Any) -> None:
    server.ended.wait(20)


def trickles(part: bytes) -> Callable[[BaseHTTPRequestHandler, Any], None]:
    """Write a part forever, a little at a time, so that no single read waits for long."""

    def answer(handler: BaseHTTPRequestHandler, server: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 ")
        while not server.ended.wait(0.02):
            handler.wfile.write(part)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        hangs,
        trickles(b"x"),
        trickles(b"100 Continue\r\n\r\nHTTP/1.1 "),
        trickles(b"200 OK\r\n\r\n"),
        trickles(b"200 OK\r\nA: b\r\n"),
    ],
    ids=["silence", "status line", "endless continue", "body", "headers"],
)
def test_an_answer_that_does_not_end_meets_the_deadline(answer: Callable[[BaseHTTPRequestHandler, Any], None]) -> None:
    with serve(lambda handler, asked: None) as server:
        server.answer = lambda handler, asked: answer(handler, server)
        begin, num_threads = time.monotonic(), threading.active_count()
        with pytest.raises(HastenError, match=r"does not answer in time: allowed: up to 0.2 s"):
            Endpoint(server.url, "m", seconds=0.2).chat("q")
        assert time.monotonic() - begin < 5 and threading.active_count() <= num_threads + 1  # the server's own


def test_an_endless_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    num_written = 0

    def endless(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        nonlocal num_written
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            num_written += handler.wfile.write(b"x" * 65536)

    with serve(endless) as server, pytest.raises(HastenError, match=r"sends too much: allowed: up to 4,194,304 bytes"):
        Endpoint(server.url, "m").chat("q")
    assert MAX_ANSWER < num_written < 8 * MAX_ANSWER
    with serve(always(b"x" * 100, 200)) as server:
        monkeypatch.setattr(endpoint_module, "MAX_ANSWER", 99)
        with pytest.raises(HastenError, match="sends too much"):
            Endpoint(server.url, "m").chat("q")


@pytest.mark.parametrize("data", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 99x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200])
def test_a_server_of_another_kind_is_one_sentence(data: bytes) -> None:
    with serve(lambda handler, asked: handler.wfile.write(data)) as server, pytest.raises(HastenError, match="cannot be reached"):
        Endpoint(server.url, "m").chat("q")


def test_https_needs_tls() -> None:
    with serve(always(completion("x"))) as server, pytest.raises(HastenError, match="cannot be reached"):
        Endpoint(server.url.replace("http:", "https:"), "m").chat("q")
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "localhost:8000",
            "ftp://host/v1",
            "file:///etc/passwd",
            "http://",
            "http:///v1",
            "http://host:0/v1",
            "http://host:99999",
        ),
        *("http://user:hunter2@host/v1", "http://host/v1?key=3", "http://host/v1#x", "http://host/\r\nX: y", "http://host/ä"),
        *("http://[::1", "http://host name/v1", "http://host/v1\x00"),
    ],
)
def test_a_wrong_url_is_refused_and_its_password_is_not_shown(url: str) -> None:
    with pytest.raises(InvalidOption, match="this is no URL of an endpoint") as caught:
        Endpoint(url, "m")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "ä", "a\r\nX-Injected: b", "", "\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    with pytest.raises(InvalidOption, match=f"Correct {KEY_VARIABLE}") as caught:
        Endpoint("http://host/v1", "m", api_key=key)
    assert "Injected" not in str(caught.value) and "two words" not in str(caught.value)


def test_an_endpoint_without_a_model_is_refused() -> None:
    with pytest.raises(InvalidOption, match="the model of the endpoint is missing"):
        open_endpoint("http://host/v1", None)
