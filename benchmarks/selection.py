"""Chosen examples against random ones: ``python benchmarks/selection.py --out benchmarks/results/selection.json``

The pool are functions of the Python standard library: the input is a function up to its first statement, the output is the rest.
The teacher is the demo model, and the student has every second layer of it. Each seed draws another pool. Every method chooses the
same number of its examples, and a student is trained on them for the same number of steps. Methods may prefer longer outputs, so
the mean number of their tokens is reported. KL from the teacher and NLL are of functions of other files, which no method sees. A
method is compared with the random choice of the same seed.
"""

import argparse
import ast
import hashlib
import json
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hasten.bench.provenance import provenance
from hasten.checkpoints.hub import resolve
from hasten.compress.distill.selection.options import METHODS, RANDOM, SelectOptions
from hasten.compress.distill.selection.pool import Record
from hasten.compress.distill.selection.select import choose
from hasten.compress.distill.student import TeacherLayers, plan_student
from hasten.quality.intervals import mean_interval
from hasten.training.callback import TrainingCallback
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import LOSSES, DistillRecipe
from hasten.training.distill.teacher import LiveTeacher
from hasten.training.examples import Example, Examples, output_tokens
from hasten.training.load_tokenizer import load_tokenizer
from hasten.training.loop import TrainingLoop
from hasten.training.options import TrainOptions
from hasten.training.resume import ResumeFolder
from hasten.training.target_model import TargetModel

STUDENT = TeacherLayers("every-2")
HELD_OUT_FILES = 10  # one file of so many
NUM_VALIDATION, NUM_HELD_OUT = 64, 400  # functions
EXCLUDED = ("site-packages", "encodings", "pydoc_data")
Function = tuple[str, str]  # up to its first statement, and from it on


def functions(file: Path) -> Iterator[Function]:
    """Yield the functions and methods of a file; none if it is no Python of this version."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.body[0].lineno > node.lineno:
            first, last = node.body[0].lineno - 1, node.end_lineno
            given, rest = "".join(lines[node.lineno - 1 : first]), "".join(lines[first:last])
            if given.strip() and rest.strip():
                yield given, rest


def read_functions() -> tuple[list[Function], list[Function]]:
    """Return the functions of the standard library: those for the pools, and those held out, by the names of their files."""
    root = Path(sysconfig.get_path("stdlib"))
    pool: list[Function] = []
    held_out: list[Function] = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root).as_posix()
        if not any(part in name for part in EXCLUDED):
            digest = hashlib.sha256(name.encode()).digest()
            (pool if digest[0] * 256 + digest[1] >= 65536 // HELD_OUT_FILES else held_out).extend(functions(file))
    return pool, held_out


class Experiment:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, resolve("demo", quiet=True)
        self.model = TargetModel.load(self.folder)
        self.tokenizer = load_tokenizer(self.folder, self.model.spec.vocab_size)
        self.student = plan_student(STUDENT, self.folder, self.model.spec)
        pool, held_out = read_functions()
        shuffled = random.Random(0).sample(held_out, len(held_out))
        fitting = [example for example in map(self.encode, shuffled) if 1 < len(example.ids) <= given.seq_len]
        self.validation, self.held_out = fitting[:NUM_VALIDATION], fitting[NUM_VALIDATION : NUM_VALIDATION + NUM_HELD_OUT]
        self.pool = [function for function in pool if len(self.encode(function).ids) <= given.seq_len]

    def encode(self, function: Function) -> Example:
        ids = self.tokenizer.encode(function[0])
        return Example([*ids, *output_tokens(self.tokenizer, function[1])], len(ids))

    def records(self, seed: int) -> list[Record]:
        """Return the pool of a seed."""
        drawn = random.Random(seed).sample(self.pool, min(self.given.pool, len(self.pool)))
        return [Record(number, "", *function) for number, function in enumerate(drawn, 1)]

    def choose(self, records: Sequence[Record], by: str, seed: int, student: Path) -> list[Record]:
        given = self.given
        options = SelectOptions(count=given.count, by=by, seed=seed, seq_len=given.seq_len, threads=given.threads)
        teacher = self.folder if options.needs_teacher else None
        return choose(records, options, student=student if options.needs_student else None, teacher=teacher).chosen

    def train(self, chosen: Sequence[Record], seed: int, folder: Path) -> dict[str, float]:
        """Train a student on examples and return its figures on the held-out functions."""
        given, recipe = self.given, DistillRecipe(loss=self.given.loss)
        examples = Examples.join([self.encode((record.input, record.output)) for record in chosen], self.validation, self.held_out)
        options = TrainOptions(steps=given.steps, batch=given.batch, seed=seed, patience=10**6, save_every=1e9)
        task = DistillTask(self.student.build(self.model, seed), LiveTeacher(self.model), recipe)
        lr, weight_decay = recipe.learning_rate, recipe.weight_decay
        resume = ResumeFolder.open(folder, {})
        TrainingLoop(task, examples, options, resume, TrainingCallback(), lr=lr, weight_decay=weight_decay).run(lambda: False)
        return self.measure(task, examples)

    def mean_output_tokens(self, chosen: Sequence[Record]) -> float:
        examples = [self.encode((record.input, record.output)) for record in chosen]
        return statistics.mean(len(example.ids) - example.num_input for example in examples)

    def measure(self, task: DistillTask, examples: Examples) -> dict[str, float]:
        first, *others = [task.evaluate(batch) for batch in examples.held_out_batches(self.given.batch)]
        score = sum(others, start=first)
        assert score.kl is not None
        return {"kl": score.kl / score.num_positions, "nll": score.nll / score.num_positions}


def run_seed(experiment: Experiment, seed: int, methods: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the figures of each method, and those of the student before any training."""
    records, student = experiment.records(seed), folder / f"student-{seed}"
    model = experiment.student.build(experiment.model, seed)
    model.write(student, experiment.folder)
    untrained = DistillTask(model, LiveTeacher(experiment.model), DistillRecipe())
    row: dict[str, Any] = {"untrained": experiment.measure(untrained, Examples.join([], [], experiment.held_out))}
    for by in methods:
        begin = time.perf_counter()
        chosen = experiment.choose(records, by, seed, student)
        selected = time.perf_counter()
        row[by] = experiment.train(chosen, seed, folder / f"{by}-{seed}")
        row[by] |= {
            "chosen": len(chosen),
            "selection_seconds": selected - begin,
            "training_seconds": time.perf_counter() - selected,
        }
        print(f"seed {seed}, {by}: KL {row[by]['kl']:.4f}, NLL {row[by]['nll']:.4f}", flush=True)
    return row


def differences(rows: Sequence[dict[str, Any]], by: str) -> dict[str, Any]:
    """Return the mean difference from the random choice over seeds, and its 95 % interval."""
    result = {}
    for figure in ("kl", "nll"):
        values = [row[by][figure] - row[RANDOM][figure] for row in rows]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        mean = statistics.mean(values)
        result[figure] = {"difference": mean, "interval": mean_interval(mean, error, len(values))}
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loss", choices=LOSSES, default="forward-kl")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    methods = [*(by for by in given.methods if by != RANDOM), RANDOM]
    experiment = Experiment(given)
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    sizes = {"functions": len(experiment.pool), "held_out": len(experiment.held_out)}
    result = {**provenance("selection", sys.argv), "settings": settings, **sizes}
    with tempfile.TemporaryDirectory() as folder:
        rows = [run_seed(experiment, seed, methods, Path(folder)) for seed in range(given.seeds)]
    result |= {"seeds": rows, "differences": {by: differences(rows, by) for by in methods if by != RANDOM}}
    for by, found in result["differences"].items():
        for figure, value in found.items():
            print(f"{by} - {RANDOM}: {figure} {value['difference']:+.4f}, 95 % interval {value['interval']}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
