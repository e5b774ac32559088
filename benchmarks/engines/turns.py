"""One phase: load its engines, warm each up, then all in turn A B C, A B C, and end them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.environment import python_of
from engines.process import Failed, Worker
from engines.roster import Entrant, Phase
from engines.shapes import Costs
from engines.works import Work
from hasten.bench.report import spread

PAUSE = 0.2  # seconds between turns, for threads of the one before to be stopped and the memory bus to fall silent


@dataclass(frozen=True, slots=True)
class Run:
    """What all phases of a run share."""

    folder: Path  # of environments, checkpoints and logs
    checkpoint: Path
    costs: Costs
    threads: int
    repeats: int
    seed: int
    python: Path  # hasten's
    tell: Callable[[str], None]

    def worker(self, entrant: Entrant, weights: str) -> Worker:
        python = python_of(entrant.environment, self.folder) if entrant.environment else self.python
        log = self.folder / "logs" / f"{self.checkpoint.parent.name}-{entrant.program}-{weights}.log"
        return Worker(python, entrant.program, threads=self.threads, log=log, cache=self.folder)

    def setup(self, entrant: Entrant, phase: Phase, works: Sequence[Work]) -> dict[str, Any]:
        room = max(work.room for work in works) + sum(w.steps * (self.repeats + 2) for w in works if w.kind == "long")
        return {
            "checkpoint": str(self.checkpoint),
            "converted": str(self.converted(entrant, phase.weights)),
            "weights": phase.weights,
            "kv": phase.kv,
            "threads": self.threads,
            "room": -(-(room + 64) // 256) * 256,
            "sequences": max(work.batch for work in works),
        }

    def converted(self, entrant: Entrant, weights: str) -> Path:
        return self.checkpoint.parent / f"{entrant.converted or entrant.program}-{weights}"


class Convoy:
    """The engines of a phase that still run. One that fails once is out of the phase, with its reason noted."""

    def __init__(self, run: Run, phase: Phase) -> None:
        self.run, self.phase = run, phase
        self.workers: dict[Entrant, Worker] = {}
        self.rows: list[dict[str, Any]] = []
        self.missing: list[dict[str, Any]] = []
        self.loaded: dict[str, Any] = {}

    def load(self, entrants: Sequence[Entrant], works: Sequence[Work]) -> None:
        for entrant in entrants:
            setup = self.run.setup(entrant, self.phase, works)
            try:
                self._convert(entrant, setup)
                self.workers[entrant] = self.run.worker(entrant, self.phase.weights)
                begin = time.perf_counter()
                about = self.workers[entrant].ask(do="load", **setup)
                self.loaded[entrant.name] = {**about, "load_seconds": round(time.perf_counter() - begin, 2)}
                self.run.tell(f"{self._name(entrant)} is loaded")
            except (Failed, OSError) as error:
                self._out(entrant, None, str(error))

    def _convert(self, entrant: Entrant, setup: dict[str, Any]) -> None:
        folder = Path(setup["converted"])
        if (folder / "done").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.run.tell(f"converting for {self._name(entrant)}")
        worker = self.run.worker(entrant, self.phase.weights)  # its own process: conversion leaves memory behind
        try:
            worker.ask(do="convert", **setup)
        finally:
            worker.end()
        (folder / "done").touch()

    def compare(self, work: Work) -> None:
        """Warm-up, then the turns; a row for each engine that came through."""
        taking_part = [e for e in self.workers if e.runs(self.phase.weights, self.phase.kv, work.name)]
        answers: dict[Entrant, list[dict[str, Any]]] = {entrant: [] for entrant in taking_part}
        turns = self.phase.turns.get(work.name, self.run.repeats)
        for turn in range(turns + 1):  # turn 0 is the warm-up
            for entrant in taking_part:
                if entrant not in self.workers:
                    continue
                try:
                    answers[entrant].append(self._turn(entrant, work, turn))
                except Failed as error:
                    self._out(entrant, work.name, str(error))
                time.sleep(PAUSE)
        for entrant, found in answers.items():
            if entrant in self.workers:
                self.rows.append(self._row(entrant, work, found))
                rate = self.rows[-1]["tokens_per_second"]
                self.run.tell(
                    f"{work.words}: {self._name(entrant)} {rate['median']:.1f} tokens/s ({rate['min']:.1f} to {rate['max']:.1f})"
                )

    def _turn(self, entrant: Entrant, work: Work, turn: int) -> dict[str, Any]:
        worker, seed = self.workers[entrant], self.run.seed
        prompts = work.prompts(seed, turn, self.run.costs.vocab_size)
        if work.kind == "prefill":
            return worker.ask(do="prefill", prompt=prompts[0])
        if work.kind == "decode":
            return worker.ask(do="decode", prompts=prompts, tokens=work.steps)
        if work.kind == "mixed":
            lengths = work.output_lengths(seed)
            if turn == 0:
                prompts, lengths = prompts[:8], [min(4, length) for length in lengths[:8]]
            return worker.ask(do="serve", prompts=prompts, lengths=lengths)
        if turn == 0:
            room = work.steps * (self.run.repeats + 1)
            held = worker.ask(do="hold", prompt=prompts[0], tokens=room)
            return {**worker.ask(do="more", tokens=work.steps), "first": held["first"], "hold_seconds": held["seconds"]}
        return worker.ask(do="more", tokens=work.steps)

    def _row(self, entrant: Entrant, work: Work, answers: list[dict[str, Any]]) -> dict[str, Any]:
        warm, timed = answers[0], answers[1:]
        seconds = [answer["seconds"] for answer in timed]
        all_tokens = work.all_tokens(self.run.seed)
        demand = work.demand(self.run.costs, self.phase.weights, self.phase.kv, self.run.seed)
        return {
            "engine": entrant.name,
            "weights": self.phase.weights,
            "kv": self.phase.kv,
            "work": work.name,
            "words": work.words,
            "tokens_per_second": spread([work.tokens(self.run.seed) / s for s in seconds]),
            "all_tokens_per_second": spread([all_tokens / s for s in seconds]) if all_tokens else None,
            "seconds": seconds,
            "warmup_seconds": warm.get("hold_seconds", warm["seconds"]),
            "demand": {"ops": demand.ops, "bytes": demand.bytes},
            "first_tokens": [answer["first"] for answer in (answers if work.kind != "mixed" else timed)],
            "peak_memory": max(answer["peak_memory"] for answer in answers),
        }

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()

    def _out(self, entrant: Entrant, work: str | None, reason: str) -> None:
        self.run.tell(f"{self._name(entrant)} is out: {reason}")
        self.missing.append(
            {"engine": entrant.name, "weights": self.phase.weights, "kv": self.phase.kv, "work": work, "reason": reason}
        )
        if entrant in self.workers:
            self.workers.pop(entrant).end()

    def _name(self, entrant: Entrant) -> str:
        return f"{entrant.name} {self.phase.weights}{' with 8-bit KV' if self.phase.kv else ''}"


def agreement(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each row how many first tokens equal transformers' in bf16 on the same prompts: same model, same input?"""
    reference = {row["work"]: row["first_tokens"] for row in rows if row["engine"] == "transformers"}
    for row in rows:
        theirs = [token for turn in reference.get(row["work"], []) for token in turn]
        ours = [token for turn in row.pop("first_tokens") for token in turn]
        pairs = list(zip(ours, theirs, strict=False))
        row["first_tokens_as_transformers"] = f"{sum(a == b for a, b in pairs)} of {len(pairs)}" if pairs else None
