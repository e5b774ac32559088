"""The worker program: one JSON object per line in, one out, until the input ends. Only the standard library, for every Python.

An engine offers ``start`` and ``step`` (then the loop holds the watch), or times ``prefill`` and ``decode`` itself where its
interface gives only whole answers. ``serve`` is for engines with continuous batching. All decode greedily and never stop early.
"""

import dataclasses
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

Ids = list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """How a checkpoint is to be run."""

    checkpoint: Path  # as transformers wrote it
    converted: Path  # where this engine keeps its own form of it
    weights: str  # bf16, int8 or int4
    kv: str | None  # int8, or None: the engine's default
    threads: int
    room: int  # tokens of the longest sequence
    sequences: int  # that may run at a time


class Engine(Protocol):
    """``convert`` writes to ``setup.converted`` and may be empty; ``load`` comes before all that follows."""

    def convert(self, setup: Setup) -> None: ...

    def load(self, setup: Setup) -> dict[str, Any]:
        """Versions and settings, for the result."""
        ...


class Stepwise(Engine, Protocol):
    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        """Forget what ran before, read the prompts and give each one's first token; at most ``tokens`` steps follow."""
        ...

    def step(self) -> Ids:
        """One more token of each."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """Seconds, and the first token of each answer."""

    seconds: float
    first: Ids


class Watch:
    """Times a stepwise engine from outside: the same clock at the same places for all."""

    def __init__(self, engine: Stepwise) -> None:
        self.engine = engine

    def prefill(self, prompt: Ids) -> Timed:
        begin = time.perf_counter()
        first = self.engine.start([prompt], 1)
        return Timed(time.perf_counter() - begin, first)

    def decode(self, prompts: list[Ids], tokens: int) -> Timed:
        first = self.engine.start(prompts, tokens)
        return Timed(self.more(tokens).seconds, first)

    def hold(self, prompt: Ids, tokens: int) -> Timed:
        """Read a long prompt once; ``more`` goes on from there, turn after turn."""
        begin = time.perf_counter()
        first = self.engine.start([prompt], tokens)
        return Timed(time.perf_counter() - begin, first)

    def more(self, tokens: int) -> Timed:
        begin = time.perf_counter()
        for _ in range(tokens):
            self.engine.step()
        return Timed(time.perf_counter() - begin, [])


def answer(engine: Any, command: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(command)
    name = arguments.pop("do")
    if name in ("convert", "load"):
        paths: dict[str, Any] = {field: Path(arguments.pop(field)) for field in ("checkpoint", "converted")}
        found = getattr(engine, name)(Setup(**paths, **arguments))
        return found or {}
    timer: Any = engine if hasattr(engine, "decode") else Watch(engine)
    run: Callable[..., Timed] = getattr(engine, "serve") if name == "serve" else getattr(timer, name)  # noqa: B009
    timed = run(**arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**dataclasses.asdict(timed), "peak_memory": peak}


def work(engine: Engine) -> None:
    """Whatever the engine prints goes to stderr, so that only answers are on stdout."""
    answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            found = answer(engine, json.loads(line))
        except Exception as error:  # a peer that fails is a finding, and the others go on
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()
