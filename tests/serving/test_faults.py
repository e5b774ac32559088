"""A served model whose engine is killed or stopped: clients see an error at once, probes tell the truth, and it comes back."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
from tests.exhaustive import repeats
from tests.serving.served_program import ServedProgram, until

from hasten import LLM, SamplingParams

OPTIONS = ("--threads", "1", "--kv-cache-memory", "32MiB", "--max-model-len", "1024", "--port", "0")
PROMPT = "def binary_search("
BODY = {"model": "demo", "prompt": PROMPT, "temperature": 0, "ignore_eos": True}


@contextmanager
def serve_demo(*options: str) -> Iterator[tuple[ServedProgram, httpx.Client]]:
    with (
        ServedProgram("-m", "hasten", "serve", "demo", *OPTIONS, *options) as program,
        httpx.Client(base_url=program.url, timeout=30) as client,
    ):
        until(client, "/readyz", 200)
        yield program, client


def engine_pid(program: ServedProgram) -> int:
    """Return the id of the engine's process: the child that the server started for the model."""
    children = psutil.Process(program.process.pid).children()
    engines = [child.pid for child in children if "hasten.entrypoints.engine_process" in child.cmdline()]
    assert len(engines) == 1, engines
    return engines[0]


class Stream:
    """A streamed completion that a thread reads to its end."""

    def __init__(self, client: httpx.Client) -> None:
        self.began, self.lines, self.status = threading.Event(), [], 0
        self._client = client
        self._thread = threading.Thread(target=self._read)
        self.lines: list[str] = []
        self._thread.start()

    def _read(self) -> None:
        with self._client.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 900, "stream": True}) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                self.lines.append(line)
                self.began.set()
        self.began.set()

    def wait(self, seconds: float) -> list[dict[str, Any] | str]:
        """Return the events, once the stream has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the stream goes on"
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]
        return [each if each == "[DONE]" else json.loads(each) for each in data]


def test_a_killed_engine_is_an_error_within_two_seconds_and_comes_back() -> None:
    expected = (
        LLM("demo", max_model_len=1024, kv_cache_memory="32MiB", threads=1)
        .generate(PROMPT, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False)[0]
        .outputs[0]
        .text
    )
    rounds, per_server = repeats("engine kills"), 4  # more than five deaths in ten minutes end a server
    while rounds > 0:
        with serve_demo() as (program, client):
            for _ in range(min(rounds, per_server)):
                kill_and_check(program, client, expected)
                rounds -= 1
            program.send(signal.SIGTERM)
            assert program.wait() == 0


def kill_and_check(program: ServedProgram, client: httpx.Client, expected: str) -> None:
    streams = [Stream(client) for _ in range(4)]
    for stream in streams:
        assert stream.began.wait(30)
    pid, killed = engine_pid(program), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for stream in streams:
        events = stream.wait(max(0.1, killed + 2 - time.monotonic()))
        assert stream.status == 200
        last = events[-1]
        assert isinstance(last, dict) and last["error"]["type"] == "service_unavailable_error", last
        assert "[DONE]" not in events
    answer = client.post("/v1/completions", json={**BODY, "max_tokens": 8})  # it waits for the new engine, or is refused at once
    assert answer.status_code in (200, 503)
    until(client, "/readyz", 200)
    assert engine_pid(program) != pid
    answer = client.post("/v1/completions", json={**BODY, "max_tokens": 8})
    assert answer.json()["choices"][0]["text"] == expected


def test_a_stopped_engine_is_not_ready_within_ten_seconds() -> None:
    with serve_demo() as (program, client):
        pid = engine_pid(program)
        os.kill(pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            answer = until(client, "/readyz", 503, 10)
            assert time.monotonic() - stopped <= 10
            assert answer.json()["status"] != "ready"
            assert client.get("/livez").status_code == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        until(client, "/readyz", 200)
        assert client.post("/v1/completions", json={**BODY, "max_tokens": 4}).status_code == 200
        assert engine_pid(program) == pid


def until_open(client: httpx.Client, number: int) -> None:
    """Wait until so many requests run or wait."""
    for _ in range(500):
        lines = client.get("/metrics").text.splitlines()
        counts = [
            float(line.split()[-1])
            for line in lines
            if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
        ]
        if sum(counts) == number:
            return
    raise AssertionError(counts)


def test_a_long_prefill_and_a_full_queue_are_no_failure() -> None:
    with serve_demo("--max-num-seqs", "1", "--max-requests", "3", "--max-num-batched-tokens", "16") as (_, client):
        streams = [Stream(client) for _ in range(3)]
        assert streams[0].began.wait(30)
        until_open(client, 3)
        refused = client.post("/v1/completions", json={**BODY, "max_tokens": 1})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == client.get("/livez").status_code == 200
        for stream in streams:
            assert stream.wait(60)[-1] == "[DONE]"
        assert client.post("/v1/completions", json={**BODY, "max_tokens": 1}).status_code == 200
