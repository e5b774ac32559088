"""The worker program: it reads one JSON command per line and writes one JSON answer.

It uses only the standard library. An engine has ``start`` and ``step``, which ``StepTimer`` measures, or measures ``prefill`` and
``decode`` itself if its interface returns only complete outputs. ``serve`` is for engines with continuous batching. All decode
greedily and ignore stop tokens.
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
    """How to run a checkpoint."""

    checkpoint: Path  # as transformers wrote it
    converted: Path  # folder of the checkpoint in this engine's format
    weights: str  # of the layers, a key of ``shapes.BYTES``
    lm_head: str  # likewise
    int8_activations: bool  # of hasten with a quantised checkpoint
    kv: str | None  # int8, or None: the engine's default
    threads: int
    max_len: int  # tokens of the longest sequence
    sequences: int  # maximum that run at a time


class Engine(Protocol):
    """An engine.

    ``convert`` writes to ``setup.converted`` and may do nothing; ``load`` is called before all other methods.
    """

    def convert(self, setup: Setup) -> None: ...

    def load(self, setup: Setup) -> dict[str, Any]:
        """Load the model and return versions and settings for the result."""
        ...


class StepwiseEngine(Engine, Protocol):
    """An engine that generates one token of every sequence per step."""

    def start(self, prompts: list[Ids], tokens: int) -> Ids:
        """Reset, compute the prompts and return the first token of each; at most ``tokens`` steps follow."""
        ...

    def step(self) -> Ids:
        """Return the next token of each sequence."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Timed:
    """Seconds, and the first token of each output."""

    seconds: float
    first: Ids


class StepTimer:
    """Measures stepwise engines, all with the same clock at the same points."""

    def __init__(self, engine: StepwiseEngine) -> None:
        self.engine = engine

    def prefill(self, prompt: Ids) -> Timed:
        start = time.perf_counter()
        first = self.engine.start([prompt], 1)
        return Timed(time.perf_counter() - start, first)

    def decode(self, prompts: list[Ids], tokens: int) -> Timed:
        first = self.engine.start(prompts, tokens)
        return Timed(self.continue_context(tokens).seconds, first)

    def start_context(self, prompt: Ids, tokens: int) -> Timed:
        """Compute a long prompt once; every call of ``continue_context`` generates further tokens after it."""
        start = time.perf_counter()
        first = self.engine.start([prompt], tokens)
        return Timed(time.perf_counter() - start, first)

    def continue_context(self, tokens: int) -> Timed:
        start = time.perf_counter()
        for _ in range(tokens):
            self.engine.step()
        return Timed(time.perf_counter() - start, [])


def run_command(engine: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    name = arguments.pop("command")
    if name in ("convert", "load"):
        paths: dict[str, Any] = {field: Path(arguments.pop(field)) for field in ("checkpoint", "converted")}
        return getattr(engine, name)(Setup(**paths, **arguments)) or {}
    timer: Any = engine if hasattr(engine, "decode") else StepTimer(engine)
    run: Callable[..., Timed] = getattr(engine, "serve") if name == "serve" else getattr(timer, name)  # noqa: B009
    timed = run(**arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**dataclasses.asdict(timed), "peak_memory": peak}


def run_worker(engine: Engine) -> None:
    """Answer commands until the input ends.

    Output of the engine goes to stderr, so that stdout has only answers.
    """
    answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = run_command(engine, json.loads(line))
        except Exception as error:  # the benchmark reports the failure and continues with the other engines
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
