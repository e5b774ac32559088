"""The usage of a scripted conversation equals a ledger by hand: a dict over token ids, with the clock of the test."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from tests.serving.live_server import live_server

from hasten.entrypoints.async_llm import AsyncLLM
from hasten.entrypoints.engine_host import EngineHost
from hasten.serving.anthropic.surface import anthropic_surface
from hasten.serving.app import create_app
from hasten.serving.models.single import SingleModel
from hasten.serving.safety.protect import protect
from hasten.serving.server_options import ServerOptions
from hasten.serving.server_state import ServerState

BLOCK = 16
SECONDS = {"5m": 300, "1h": 3600}
SYSTEM = "You are a patient teacher of Python. Answer with code, and say in one line what each part of it does. " * 2
TOOL = {
    "name": "run_python",
    "description": "Run a program, and return what it prints. It has no network, and it ends after ten seconds at the latest.",
    "input_schema": {"type": "object", "properties": {"source": {"type": "string"}}, "required": ["source"]},
}
# Of a turn: seconds since the one before, the marks of tools, system prompt and last message, and the key.
Turn = tuple[float, str | None, str | None, str | None, str]
SCRIPT: list[Turn] = [
    (0, None, None, None, "red"),  # nothing is marked, though its blocks are cached
    (5, "1h", "5m", None, "red"),  # so all of it is written
    (5, "1h", "5m", "5m", "red"),
    (299, "1h", "5m", "5m", "red"),  # within five minutes: read, and extended
    (299, None, None, None, "red"),  # a hit without marks extends, too
    (299, "1h", "5m", "5m", "red"),
    (1, "1h", "5m", "5m", "blue"),  # the same conversation of another key
    (301, "1h", "5m", "5m", "red"),  # five minutes are over, the hour is not
    (10, "1h", "1h", "5m", "red"),  # the system prompt is now marked for an hour
    (400, "1h", "1h", "1h", "blue"),
    (3000, None, "1h", None, "red"),
    (3601, "1h", "1h", "1h", "red"),  # all is over
    (1, None, None, "5m", "blue"),
]


@dataclass
class Ledger:
    """Which prefixes are pinned until when, by key and token ids."""

    now: float = 0.0
    pins: dict[tuple[str, tuple[int, ...]], tuple[float, float]] = field(default_factory=dict)  # -> seconds, end

    def request(self, key: str, tokens: tuple[int, ...], marks: list[tuple[int, str]]) -> dict[str, int]:
        """Return what a request reads and writes. ``marks``: where marked blocks end, and their lifetimes."""
        self.pins = {pin: (seconds, end) for pin, (seconds, end) in self.pins.items() if end > self.now}
        read = 0
        for (owner, prefix), (seconds, _) in self.pins.items():
            if owner == key and tokens[: len(prefix)] == prefix:
                self.pins[owner, prefix] = (seconds, self.now + seconds)
                read = max(read, len(prefix))
        written: dict[int, float] = {}
        for end, lifetime in marks:
            prefix, seconds = tokens[: end // BLOCK * BLOCK], SECONDS[lifetime]
            if prefix:
                if (key, prefix) not in self.pins:
                    written[len(prefix)] = seconds
                longest = max(seconds, self.pins.get((key, prefix), (0, 0))[0])
                self.pins[key, prefix] = (longest, self.now + longest)
        lifetime_of = [max((seconds for end, seconds in written.items() if end > i), default=0) for i in range(read, len(tokens))]
        return {
            "cache_read_input_tokens": read,
            "ephemeral_1h_input_tokens": lifetime_of.count(3600),
            "ephemeral_5m_input_tokens": lifetime_of.count(300),
            "input_tokens": lifetime_of.count(0),
        }


@pytest.fixture
def llm() -> Iterator[AsyncLLM]:
    opened = AsyncLLM("demo", threads=1, kv_cache_memory="64MiB", max_model_len=2048, block_size=BLOCK)
    yield opened
    asyncio.run(opened.close())


def random_script(seed: int) -> list[Turn]:
    draw, turns = random.Random(seed), []
    for _ in range(14):
        num_long = draw.randrange(4)  # longer lifetimes stand first
        marks = [draw.choice((None, "1h" if place < num_long else "5m")) for place in range(3)]
        pause = draw.choice((1, 100, 299, 301, 1000, 3599, 3601))
        turns.append((float(pause), marks[0], marks[1], marks[2], draw.choice(("red", "red", "blue"))))
    return turns


def body_of(turn: int, marks: Turn, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the request of a turn."""
    _, tools, system, last, _ = marks

    def mark(lifetime: str | None) -> Any:
        return None if lifetime is None else {"type": "ephemeral", "ttl": lifetime}

    question = f"Question {turn}: how do I sort a list of {turn} names by their length, and why does that work at all?"
    block = {"type": "text", "text": question, "cache_control": mark(last)}
    return {
        "model": "demo",
        "max_tokens": 6,
        "temperature": 0,
        "tools": [{**TOOL, "cache_control": mark(tools)}],
        "system": [{"type": "text", "text": SYSTEM, "cache_control": mark(system)}],
        "messages": [*history, {"role": "user", "content": [block]}],
    }


async def tokens_and_ends(llm: AsyncLLM, body: dict[str, Any]) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return the prompt, and the tokens up to the end of the tool, of the system prompt and of the last question."""
    function = {"name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"]}
    messages = [{"role": "system", "content": SYSTEM}] + [
        {"role": each["role"], "content": "".join(block["text"] for block in each["content"])} for each in body["messages"]
    ]
    prepared = await llm.prepare_chat(messages, tools=[{"type": "function", "function": function}])
    assert llm.tokenizer is not None
    ends = {}
    for name, words in (("tools", '"required": ["source"]}}}'), ("system", SYSTEM), ("last", messages[-1]["content"])):
        before = prepared.text[: prepared.text.rindex(words)] + words
        tokens_before = llm.tokenizer.encode(before, add_special_tokens=False)
        ends[name] = len(tokens_before) - (tokens_before[-1] != prepared.token_ids[len(tokens_before) - 1])
        assert list(prepared.token_ids[: ends[name]]) == tokens_before[: ends[name]]
    return prepared.token_ids, ends


@pytest.mark.parametrize("script", [SCRIPT, *map(random_script, range(3))], ids=["by hand", "random 0", "random 1", "random 2"])
def test_every_turn_costs_what_the_ledger_says(llm: AsyncLLM, script: list[Turn]) -> None:
    host = llm._client
    assert isinstance(host, EngineHost)
    ledger, start = Ledger(), time.monotonic()
    host.loaded.engine.clock = lambda: start + ledger.now
    state, surfaces = ServerState(ServerOptions(api_keys=("red", "blue")), SingleModel("demo", llm)), [anthropic_surface()]
    app = protect(create_app(state, surfaces), state, surfaces)
    kinds = set()
    with live_server(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        history: list[dict[str, Any]] = []
        for turn, marks_of_turn in enumerate(script):
            pause, tools, system, last, key = marks_of_turn
            ledger.now += pause
            body = body_of(turn, marks_of_turn, history)
            tokens, ends = asyncio.run(tokens_and_ends(llm, body))
            wanted = {"tools": tools, "system": system, "last": last}
            marks = [(ends[name], lifetime) for name, lifetime in wanted.items() if lifetime is not None]
            expected = ledger.request(key, tokens, marks)
            message = client.post("/v1/messages", json=body, headers={"x-api-key": key}).json()
            usage = message["usage"]
            actual = {name: usage.get(name, usage["cache_creation"].get(name)) for name in expected}
            assert actual == expected, (turn, ends)
            assert usage["cache_creation_input_tokens"] == sum(usage["cache_creation"].values())
            kinds |= {name for name, count in expected.items() if count}
            question = [{"type": "text", "text": body["messages"][-1]["content"][0]["text"]}]
            history += [{"role": "user", "content": question}, {"role": "assistant", "content": message["content"]}]
    assert len(kinds) == 4
    stats = host.loaded.engine.scheduler.kv.pins
    stats.advance(start + ledger.now)
    assert len(stats) == sum(end > ledger.now for _, end in ledger.pins.values())
