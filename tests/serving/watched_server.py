"""``WatchedServer``: ``hasten serve demo`` as its user starts it, and checks that no request has harmed it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
from tests.serving.served_program import ServedProgram, until
from tests.serving.test_faults import engine_pid

CONTEXT = 256  # tokens
CANARY = "def mean(values):\n    return sum(values) / len(values)\n\n\ndef median(values):\n    ordered = sorted(values)\n"
NUM_CANARY_TOKENS = 8
FIELDS: Mapping[str, Sequence[str]] = {  # of the object in an error
    "openai": ("message", "type", "param", "code"),
    "anthropic": ("type", "message"),
}
_TROUBLE = re.compile(r"Traceback|ERROR|WARNING|has died|Error\b")


class WatchedServer:
    def __init__(self, program: ServedProgram, client: httpx.Client, expected: Sequence[int]) -> None:
        """``expected``: the token ids of the canary's answer."""
        assert len(set(expected)) > NUM_CANARY_TOKENS / 2, "a canary of one token would hide others"
        self.program, self.client, self._expected = program, client, list(expected)
        self._threads = ThreadPoolExecutor(1)
        self.url = program.url
        self.pid = engine_pid(program)
        self._num_lines = len(program.lines)  # of standard error, that have been seen

    def canary(self) -> list[int]:
        """Return the token ids of the canary's answer now."""
        body = {"prompt": CANARY, "max_tokens": NUM_CANARY_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        answer = self.client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        return tokens

    @contextmanager
    def unharmed(self, what: object) -> Iterator[None]:
        """Check around a request that a canary beside it and one after it are right, and that the engine is the same.

        ``what``: the request, as a failure shows it.
        """
        beside: Future[list[int]] = self._threads.submit(self.canary)
        try:
            yield
        finally:
            found = beside.result()
        assert found == self._expected, f"the canary beside was wrong: {found} during {what}"
        self.check(what)

    def check(self, what: object) -> None:
        """Check that the server and its engine are as they were. ``what``: the last request."""
        assert (found := self.canary()) == self._expected, f"the canary after was wrong: {found} after {what}"
        assert engine_pid(self.program) == self.pid, f"another engine runs after {what}"
        lines = self.program.lines[self._num_lines :]
        self._num_lines += len(lines)
        assert not (trouble := [line for line in lines if _TROUBLE.search(line)]), f"{trouble} after {what}"

    def close(self) -> None:
        self._threads.shutdown()


@contextmanager
def watched_server(expected: Sequence[int], *options: str) -> Iterator[WatchedServer]:
    """Start a server with a small context and all surfaces."""
    arguments = ["-m", "hasten", "serve", "demo", "--port", "0", "--threads", "1", "--max-model-len", str(CONTEXT)]
    arguments += ["--kv-cache-memory", "64MiB", "--default-max-tokens", "4", *options]
    with ServedProgram(*arguments) as program, httpx.Client(base_url=program.url, timeout=60) as client:
        until(client, "/readyz", 200)
        server = WatchedServer(program, client, expected)
        yield server
        server.close()


def check_error_form(path: str, answer: Mapping[str, Any]) -> None:
    """Check that the body of an error has the form of its path's surface."""
    if path in ("/", "/generate", "/generate_stream", "/info"):
        assert answer.keys() == {"error", "error_type"}, answer
        assert all(isinstance(each, str) and each for each in answer.values()), answer
        return
    surface = "anthropic" if path.startswith("/v1/messages") else "openai"
    assert answer["error"].keys() == set(FIELDS[surface]), answer
    assert isinstance(answer["error"]["message"], str), answer
    assert answer["error"]["message"], answer
    if surface == "anthropic":
        assert answer.keys() == {"type", "error", "request_id"}, answer
