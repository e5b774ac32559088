"""The kinds of fuzz tests. A new kind is one module with a ``run`` function and one line here."""

from __future__ import annotations

import importlib
import random
from typing import NamedTuple, Protocol

from tests.fuzz.report import Report


class Kind(NamedTuple):
    module: str  # has ``run``
    cases: int  # of a full run; CI runs a tenth
    unit: str


KINDS = {
    "checkpoints": Kind("tests.fuzz.checkpoint_mutations", 3_000, "mutations of a checkpoint's or a head's files"),
    "quantized": Kind("tests.fuzz.quantized", 5_000, "mutations of a quantised checkpoint, 1,000 per format"),
    "requests": Kind("tests.fuzz.junk_requests", 3_000, "junk requests"),
    "shapes": Kind("tests.fuzz.shapes", 500, "shapes of models, each in two weight formats"),
    "interrupts": Kind("tests.fuzz.interrupts", 300, "interrupts at random moments"),
    "exits": Kind("tests.fuzz.exits", 70, "processes that end while requests run"),
}


class Run(Protocol):
    """Runs ``cases`` cases, drawn from ``rng`` through ``Report.each``, and records every fault in ``report``."""

    def __call__(self, rng: random.Random, cases: int, report: Report) -> None: ...


def find(kind: str) -> Run:
    run: Run = importlib.import_module(KINDS[kind].module).run
    return run
