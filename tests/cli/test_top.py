"""``hasten top`` against real servers: figures, errors in one sentence, and a terminal that is clean at the end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tests.serving.metrics.traffic import make_traffic, watched_server

from hasten.cli.top_scrape import metrics_url
from hasten.core.errors import InvalidOption
from hasten.entrypoints.async_llm import AsyncLLM
from hasten.serving.metrics import model_snapshot
from hasten.serving.models.single import SingleModel

PAGE = 'hasten_build_info{version="9"} 1\nhasten_engine_up{model_name="m",engine="0"} 1\n'
Answer = tuple[int, dict[str, str], str]


@contextmanager
def stub_server(answer: Callable[[dict[str, str]], Answer]) -> Iterator[str]:
    """Run a server that gives the same answer to every path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


def test_the_figures_of_a_real_server(hasten: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_snapshot, "MAX_WAIT", 4.0)  # a busy machine may take longer than two seconds
    llm = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=512)
    try:
        with watched_server(SingleModel("demo", llm)) as server:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                make_traffic(client)
            ran = hasten("top", server.url, "--json", "--interval", "0.1")
            plain = hasten("top", server.url, "--interval", "0.1")
            stats = asyncio.run(llm.stats())
    finally:
        asyncio.run(llm.close())
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    (model,) = found["models"]
    assert (model["model"], model["up"], model["running"], model["waiting"]) == ("demo", True, 0, 0)
    assert 0 < model["ttft_p50"] <= model["ttft_p95"] < 60 and 0 < model["itl_p50"] < 10
    assert model["acceptance"] == stats["engine"]["accepted_tokens"] / stats["engine"]["drafted_tokens"]
    assert model["result_cache_hit_rate"] is None  # it has none
    assert found["server"]["rejected"]["rate_limit"] == 1 and found["server"]["cpu"] > 0
    assert plain.code == 0 and "demo" in plain.out and "TTFT p50 / p95" in plain.out and "rate_limit 1" in plain.out
    assert "\x1b" not in plain.out


def one_sentence(ran: object, *words: str) -> None:
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert not [word for word in words if word not in ran.err], ran.err


def test_no_server(hasten: Callable[..., object]) -> None:
    with stub_server(lambda _: (200, {}, PAGE)) as url:
        pass
    one_sentence(hasten("top", url, "--once"), f"no server answers at {url}/metrics", "Connection refused", "hasten serve")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}, "{}"), ["asks for an API key", "HASTEN_API_KEY"]),
        ((404, {}, "not found"), ["no hasten server answers at"]),
        ((200, {}, "<html><body>It works!</body></html>"), ["no hasten server answers at"]),
        ((200, {}, "vllm:num_requests_running 1\n"), ["no hasten server answers at"]),
        ((200, {}, 'hasten_build_info{version="'), ["no hasten server answers at"]),
        ((200, {}, ""), ["no hasten server answers at"]),
        ((503, {}, "loading"), ["does not give its metrics", "503"]),
        ((302, {"location": "http://127.0.0.1:1/metrics"}, ""), ["no hasten server answers at"]),
    ],
)
def test_other_answers(hasten: Callable[..., object], answer: Answer, words: list[str]) -> None:
    with stub_server(lambda _: answer) as url:
        one_sentence(hasten("top", url, "--once"), *words)


def test_a_key_goes_to_this_server_alone(hasten: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the variable or a file; a redirect is not followed, and an error does not show the key."""
    seen: list[str | None] = []

    def guarded(headers: dict[str, str]) -> Answer:
        seen.append(headers.get("authorization"))
        return (200, {}, PAGE) if seen[-1] == "Bearer right" else (401, {}, "")

    file = tmp_path / "key"
    file.write_text("right\n")
    with stub_server(guarded) as url:
        assert hasten("top", url, "--once", "--interval", "0.1", "--api-key-file", str(file)).code == 0
        monkeypatch.setenv("HASTEN_API_KEY", "wrong")
        one_sentence(hasten("top", url, "--once"), "refuses the API key")
        assert hasten("top", url, "--once", "--interval", "0.1", "--api-key-file", str(file)).code == 0
        assert seen == ["Bearer right"] * 2 + ["Bearer wrong"] + ["Bearer right"] * 2
        with stub_server(lambda _: (307, {"location": f"{url}/metrics"}, "")) as elsewhere:
            one_sentence(hasten("top", elsewhere, "--once", "--api-key-file", str(file)), "no hasten server")
        assert len(seen) == 5
    monkeypatch.setenv("HASTEN_API_KEY", "s3cret\nx-injected: 1")
    ran = hasten("top", url, "--once")
    one_sentence(ran, "HASTEN_API_KEY has no API key")
    assert "s3cret" not in ran.err
    one_sentence(hasten("top", url, "--once", "--api-key-file", str(tmp_path / "none")), "cannot be read")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/metrics"),
        ("https://llm.example.org/", "https://llm.example.org/metrics"),
        ("http://h:1/base/metrics", "http://h:1/base/metrics"),
        ("http://[::1]:80", "http://[::1]:80/metrics"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert metrics_url(given) == expected


@pytest.mark.parametrize(
    "given", ["", "ftp://h", "file:///etc/passwd", "http://", "http://u:p@h", "http://h:99999", "http://a b", "http://h\n"]
)
def test_no_addresses(given: str) -> None:
    with pytest.raises(InvalidOption, match="not one of a server"):
        metrics_url(given)


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, follower = pty.openpty()
        self.before = termios.tcgetattr(follower)
        self._follower, self.output = follower, b""
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        command = [sys.executable, "-m", "hasten", "top", *arguments, "--interval", "0.2"]
        self.process = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
        )

    def read_until(self, wanted: bytes) -> None:
        end = time.monotonic() + 60
        while wanted not in self.output:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if ready:
                self.output += os.read(self.master, 65536)
            assert time.monotonic() < end, self.output

    def end(self) -> int:
        code = self.process.wait(60)
        while select.select([self.master], [], [], 0.1)[0]:
            self.output += os.read(self.master, 65536)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        os.close(self.master)
        os.close(self._follower)

    @property
    def is_clean(self) -> bool:
        """Whether the terminal's modes are as before, the usual screen is shown, and the cursor too."""
        shown = self.output.rfind(b"\x1b[?25h") > self.output.rfind(b"\x1b[?25l")
        left = self.output.rfind(b"\x1b[?1049l") > self.output.rfind(b"\x1b[?1049h") >= 0
        return termios.tcgetattr(self._follower) == self.before and shown and left


@pytest.mark.parametrize("way", ["q", "interrupt"])
def test_a_live_view_leaves_a_clean_terminal(way: str) -> None:
    with stub_server(lambda _: (200, {}, PAGE)) as url:
        terminal = Terminal(url)
        try:
            terminal.read_until(b"q ends")
            assert b"TTFT p50 / p95" in terminal.output and b"hasten 9" in terminal.output
            if way == "q":
                os.write(terminal.master, b"xq")
            else:
                os.killpg(terminal.process.pid, signal.SIGINT)
            assert terminal.end() == (0 if way == "q" else 130)
            assert terminal.is_clean, terminal.output
        finally:
            terminal.close()


def test_a_live_view_waits_for_a_server_that_goes_away() -> None:
    status = [200]
    with stub_server(lambda _: (status[0], {}, PAGE)) as url:
        terminal = Terminal(url)
        try:
            terminal.read_until(b"q ends")
            status[0] = 503
            terminal.read_until(b"does not give its metrics")
            status[0] = 200
            terminal.output = b""
            terminal.read_until(b"q ends")
            os.write(terminal.master, b"q")
            assert terminal.end() == 0
        finally:
            terminal.close()
