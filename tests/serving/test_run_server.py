"""The server as a program, with engines that the test commands: signals, drains and exit codes of a real process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.serving.served_program import ServedProgram, until

PROGRAM = str(Path(__file__).with_name("commanded_server.py"))


@contextmanager
def started(**options: Any) -> Iterator[tuple[ServedProgram, httpx.Client]]:
    with ServedProgram(PROGRAM, json.dumps(options)) as program, httpx.Client(base_url=program.url, timeout=30) as client:
        yield program, client


def test_sigterm_drains_and_no_stream_is_cut():
    with started() as (program, client):
        until(client, "/readyz", 200)
        assert "server" not in client.get("/readyz").headers
        with client.stream("GET", "/stream") as stream:
            events = stream.iter_lines()
            assert next(events) == "data: token"
            program.send(signal.SIGTERM)
            sent = time.monotonic()
            answer = until(client, "/readyz", 503)
            assert time.monotonic() - sent < 2, "200 ms and the time of a loaded machine"
            assert answer.json()["status"] == "draining"
            assert client.get("/health").status_code == 200
            refused = client.get("/stream")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert refused.headers["retry-after"] == "1"
            client.post("/finish")
            assert [line for line in events if line] == ["data: [DONE]"]
        assert program.wait() == 0
        assert "requests that run (1) have 30 s" in program.text
        assert "error" not in program.text


def test_a_stream_that_outlasts_the_drain_ends_with_an_error():
    with started(drain_timeout=0.3) as (program, client):
        with client.stream("GET", "/stream") as stream:
            events = stream.iter_lines()
            assert next(events) == "data: token"
            program.send(signal.SIGTERM)
            rest = [line for line in events if line]
        assert len(rest) == 1 and "[DONE]" not in rest[0]
        assert json.loads(rest[0].removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
        assert program.wait() == 1
        assert "error: the time is over; requests that end with an error: 1" in program.text


def test_a_second_signal_ends_the_process_at_once():
    with started() as (program, client), client.stream("GET", "/stream") as stream:
        events = stream.iter_lines()  # its end would close the connection
        assert next(events) == "data: token"
        program.send(signal.SIGTERM)
        program.line("a second signal")
        sent = time.monotonic()
        program.send(signal.SIGTERM)
        assert program.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - sent < 5


def test_ctrl_c_drains_as_well():
    with started() as (program, client):
        until(client, "/readyz", 200)
        program.send(signal.SIGINT)
        assert program.wait() == 130
        assert "Traceback" not in program.text


def test_the_server_answers_and_ends_while_the_first_model_loads():
    with started(path="slow") as (program, client):
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        assert client.get("/livez").status_code == 200
        program.send(signal.SIGTERM)
        assert program.wait() == 0
        assert "Traceback" not in program.text


def test_a_first_model_that_cannot_be_loaded_ends_the_server():
    with ServedProgram(PROGRAM, '{"path": "broken"}') as program:
        assert program.wait() == 2
        assert "error: there is no model here: got broken." in program.text
        assert "Traceback" not in program.text


def test_an_engine_that_keeps_dying_ends_the_server_with_an_error():
    with started(hurry=True) as (program, client):
        for _ in range(5):
            until(client, "/health", 200)
            client.post("/die")
            until(client, "/health", 503)
        until(client, "/health", 200)
        client.post("/die")
        assert program.wait() == 1
        errors = [line for line in program.lines if line.startswith("error:")]
        assert len(errors) == 1
        assert "the engine of 'a' died 6 times in ten minutes" in errors[0]
