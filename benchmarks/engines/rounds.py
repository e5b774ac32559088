"""One phase: load its engines, warm each up, run all of them alternately, A B C, A B C, and end them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from engines.environment import python_of
from engines.process import EngineError, Worker
from engines.registry import Converter, EngineSpec, Phase
from engines.shapes import Costs
from engines.workloads import Workload
from hasten.bench.report import spread

PAUSE = 0.2  # seconds between repeats, in which the threads of the last engine stop and the memory bus gets idle


@dataclass(frozen=True, slots=True)
class Run:
    """The settings that all phases of a run share."""

    folder: Path  # of environments, checkpoints and logs
    checkpoint: Path
    costs: Costs
    threads: int
    repeats: int
    seed: int
    python: Path  # hasten's
    log: Callable[[str], None]

    def worker(self, source: EngineSpec | Converter, log: str) -> Worker:
        python = python_of(source.environment, self.folder) if source.environment else self.python
        file = self.folder / "logs" / f"{self.checkpoint.parent.name}-{log}.log"
        return Worker(python, source.program, threads=self.threads, log=file, cache=self.folder)

    def setup(self, spec: EngineSpec, phase: Phase, workloads: Sequence[Workload]) -> dict[str, Any]:
        max_len = max(workload.max_len for workload in workloads) + sum(
            w.steps * (self.repeats + 2) for w in workloads if w.kind == "long"
        )
        entry = spec.entries[phase.weights]
        return {
            "checkpoint": str(self.checkpoint),
            "converted": str(self.checkpoint.parent / f"{spec.converter(phase.weights).folder}-{entry.weights}"),
            "weights": entry.weights,
            "lm_head": entry.lm_head,
            "int8_activations": entry.has_int8_activations,
            "kv": phase.kv,
            "threads": self.threads,
            "max_len": -(-(max_len + 64) // 256) * 256,
            "sequences": max(workload.batch for workload in workloads),
        }


class EngineGroup:
    """The running engines of a phase.

    An engine that fails is removed from the phase, and its reason is recorded.
    """

    def __init__(self, run: Run, phase: Phase) -> None:
        self.run, self.phase = run, phase
        self.workers: dict[EngineSpec, Worker] = {}
        self.rows: list[dict[str, Any]] = []
        self.missing: list[dict[str, Any]] = []
        self.loaded: dict[str, Any] = {}

    def load(self, specs: Sequence[EngineSpec], workloads: Sequence[Workload]) -> None:
        for spec in specs:
            setup = self.run.setup(spec, self.phase, workloads)
            try:
                self._convert(spec, setup)
                self.workers[spec] = self.run.worker(spec, f"{spec.name}-{self.phase.weights}")
                start = time.perf_counter()
                description = self.workers[spec].call(command="load", **setup)
                self.loaded[spec.name] = {**description, "load_seconds": round(time.perf_counter() - start, 2)}
                self.run.log(f"{self._name(spec)} is loaded")
            except (EngineError, OSError, CalledProcessError) as error:
                self._remove(spec, None, str(error))

    def _convert(self, spec: EngineSpec, setup: dict[str, Any]) -> None:
        folder = Path(setup["converted"])
        if (folder / "done").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.run.log(f"converting for {self._name(spec)}")
        # A separate process, because a conversion leaves memory allocated.
        worker = self.run.worker(spec.converter(self.phase.weights), f"{folder.name}-conversion")
        try:
            worker.call(command="convert", **setup)
        finally:
            worker.end()
        (folder / "done").touch()

    def compare(self, workload: Workload) -> None:
        """Run the warm-up and the repeats, and add a row for each engine that did not fail."""
        participants = [e for e in self.workers if e.runs(self.phase.weights, self.phase.kv, workload.name)]
        answers: dict[EngineSpec, list[dict[str, Any]]] = {spec: [] for spec in participants}
        repeats = self.phase.repeats.get(workload.name, self.run.repeats)
        for repeat in range(repeats + 1):  # repeat 0 is the warm-up
            for spec in participants:
                if spec not in self.workers:
                    continue
                try:
                    answers[spec].append(self._run_repeat(spec, workload, repeat))
                except EngineError as error:
                    self._remove(spec, workload.name, str(error))
                time.sleep(PAUSE)
        for spec, spec_answers in answers.items():
            if spec in self.workers:
                self.rows.append(self._row(spec, workload, spec_answers))
                rate = self.rows[-1]["tokens_per_second"]
                self.run.log(
                    f"{workload.title}: {self._name(spec)} {rate['median']:.1f} tokens/s ({rate['min']:.1f} to {rate['max']:.1f})"
                )

    def _run_repeat(self, spec: EngineSpec, workload: Workload, repeat: int) -> dict[str, Any]:
        worker, seed = self.workers[spec], self.run.seed
        prompts = workload.prompts(seed, repeat, self.run.costs.vocab_size)
        if workload.kind == "prefill":
            return worker.call(command="prefill", prompt=prompts[0])
        if workload.kind == "decode":
            return worker.call(command="decode", prompts=prompts, tokens=workload.steps)
        if workload.kind == "mixed":
            lengths = workload.output_lengths(seed)
            if repeat == 0:
                prompts, lengths = prompts[:8], [min(4, length) for length in lengths[:8]]
            return worker.call(command="serve", prompts=prompts, lengths=lengths)
        if repeat == 0:
            num_tokens = workload.steps * (self.run.repeats + 1)
            context = worker.call(command="start_context", prompt=prompts[0], tokens=num_tokens)
            answer = worker.call(command="continue_context", tokens=workload.steps)
            return {**answer, "first": context["first"], "context_seconds": context["seconds"]}
        return worker.call(command="continue_context", tokens=workload.steps)

    def _row(self, spec: EngineSpec, workload: Workload, answers: list[dict[str, Any]]) -> dict[str, Any]:
        warmup, measured = answers[0], answers[1:]
        seconds = [answer["seconds"] for answer in measured]
        all_tokens = workload.all_tokens(self.run.seed)
        entry = spec.entries[self.phase.weights]
        demand = workload.demand(self.run.costs, entry.weights, self.phase.kv, self.run.seed, entry.lm_head)
        return {
            "engine": spec.name,
            "weights": self.phase.weights,
            "label": entry.label or entry.weights,
            "lm_head": entry.lm_head,
            "activations": entry.activations,
            "kv": self.phase.kv,
            "work": workload.name,
            "words": workload.title,
            "tokens_per_second": spread([workload.tokens(self.run.seed) / s for s in seconds]),
            "all_tokens_per_second": spread([all_tokens / s for s in seconds]) if all_tokens else None,
            "seconds": seconds,
            "warmup_seconds": warmup.get("context_seconds", warmup["seconds"]),
            "demand": {"ops": demand.ops, "bytes": demand.bytes},
            "first_tokens": [answer["first"] for answer in (answers if workload.kind != "mixed" else measured)],
            "peak_memory": max(answer["peak_memory"] for answer in answers),
        }

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()

    def _remove(self, spec: EngineSpec, work: str | None, reason: str) -> None:
        self.run.log(f"{self._name(spec)} is removed: {reason}")
        self.missing.append(
            {"engine": spec.name, "weights": self.phase.weights, "kv": self.phase.kv, "work": work, "reason": reason}
        )
        if spec in self.workers:
            self.workers.pop(spec).end()

    def _name(self, spec: EngineSpec) -> str:
        return f"{spec.name} {self.phase.weights}{' with 8-bit KV' if self.phase.kv else ''}"


def add_agreement(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row how many first tokens equal those of transformers in bf16.

    This checks that the engines run the same model on the same prompts.
    """
    reference = {row["work"]: row["first_tokens"] for row in rows if row["engine"] == "transformers"}
    for row in rows:
        expected = [token for repeat in reference.get(row["work"], []) for token in repeat]
        tokens = [token for repeat in row.pop("first_tokens") for token in repeat]
        pairs = list(zip(tokens, expected, strict=False))
        row["first_tokens_as_transformers"] = f"{sum(a == b for a, b in pairs)} of {len(pairs)}" if pairs else None
