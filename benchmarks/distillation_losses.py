"""What a student learns by each loss of distillation, and what it forgets.

``python benchmarks/distillation_losses.py --out benchmarks/results/distillation_losses.json``

The demo model teaches students of a quarter of its parameters. First each seed trains one student by plain fine-tuning, on Python
code and documentation. Every loss then continues with that student on code alone, for equal steps of equal batches. The set is the
source of the standard library that runs this script, without the demo's held-out files.

    kl          nats per token from the teacher on held-out code, which no student read
    gain        plain fine-tuning's kl minus this loss's, paired by seed
    forgetting  what the kl on held-out documentation rises by in the second stage

Means over seeds have 95 % intervals of Student's t.
"""

import argparse
import functools
import hashlib
import json
import operator
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hasten.bench.provenance import provenance
from hasten.checkpoints.hub import resolve
from hasten.compress.distill.forgetting import outside_sequences
from hasten.compress.distill.run import REPORT, distill
from hasten.compress.distill.student import SmallerModel, StudentCheckpoint, StudentSource
from hasten.compress.prune.shape import num_parameters
from hasten.quality.documents import CALIBRATION, HELD_OUT
from hasten.quality.intervals import mean_interval
from hasten.text.tokenizer import TextTokenizer
from hasten.training.corpus import Batch
from hasten.training.distill.distill_task import DistillTask
from hasten.training.distill.recipe import SFT, DistillRecipe
from hasten.training.distill.score import DistillScore
from hasten.training.distill.teacher import LiveTeacher
from hasten.training.options import TrainOptions
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

TEACHER = "demo"
STUDENT = SmallerModel(layers=5, hidden=128)
CODE, DOCUMENTATION = "code", "docs"
RECIPES = {
    SFT: DistillRecipe(loss=SFT),
    "forward-kl": DistillRecipe(loss="forward-kl"),
    "reverse-kl": DistillRecipe(loss="reverse-kl"),
    "js": DistillRecipe(loss="js"),
    "skew-kl": DistillRecipe(loss="skew-kl"),
    "skew-reverse-kl": DistillRecipe(loss="skew-reverse-kl"),
    "gkd": DistillRecipe(loss="js", on_policy=0.5),
    "forward-kl + hidden": DistillRecipe(loss="forward-kl", hidden_weight=1.0),
}


def write_texts(file: Path, texts: Sequence[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def texts_of(file: Path, kind: str) -> list[str]:
    """Return the texts of one kind of a shipped file."""
    records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [record["text"] for record in records if record["kind"] == kind]


def library_code(characters: int) -> list[str]:
    """Return files of the standard library in the order of their hashes, up to a number of characters."""
    held_out = {json.loads(line)["name"].removeprefix("code/") for line in HELD_OUT.read_text(encoding="utf-8").splitlines()}
    root, texts = Path(sysconfig.get_path("stdlib")), []
    names = [str(file.relative_to(root)) for file in root.rglob("*.py") if "site-packages" not in file.parts]
    for name in sorted(set(names) - held_out, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = (root / name).read_text(encoding="utf-8", errors="ignore")
        texts += [text] if text.strip() else []
        characters -= len(text)
        if characters <= 0:
            break
    return texts


class HeldOut:
    """The held-out texts, and the KL of a student on them."""

    def __init__(self, folder: Path, seq_len: int, limit: int) -> None:
        self.teacher = TargetModel.load(resolve(TEACHER))
        tokenizer = TextTokenizer.load(self.teacher.folder, self.teacher.spec.vocab_size)
        assert tokenizer is not None
        self.ids = {}
        for kind in (CODE, DOCUMENTATION):
            file = write_texts(folder / f"held-out-{kind}.jsonl", texts_of(HELD_OUT, kind))
            self.ids[kind] = outside_sequences(file, tokenizer, seq_len)[:limit]

    def scores(self, student: Path) -> dict[str, DistillScore]:
        """Return the score of a checkpoint on each kind of text."""
        task = DistillTask(TrainableModel.load(student), LiveTeacher(self.teacher), DistillRecipe())
        batches = {kind: [Batch(ids_BS.long(), 0) for ids_BS in torch.split(ids, 8)] for kind, ids in self.ids.items()}
        return {kind: functools.reduce(operator.add, map(task.evaluate, found)) for kind, found in batches.items()}


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean over seeds and its interval."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.mean(values), "interval": mean_interval(statistics.mean(values), error, len(values))}


class Experiment:
    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.held_out = HeldOut(folder, options.seq_len, options.sequences)
        self.code = write_texts(folder / "code.jsonl", library_code(options.characters))
        self.docs = write_texts(folder / "docs.jsonl", texts_of(CALIBRATION, DOCUMENTATION))

    def train(
        self, name: str, student: StudentSource, recipe: DistillRecipe, seed: int, **texts: Any
    ) -> tuple[Path, dict[str, Any]]:
        """Train one student, and return its folder and what it cost."""
        out = self.folder / f"{seed}-{name}"
        given = self.options
        options = TrainOptions(
            steps=given.first_steps if texts else given.steps,
            batch=given.batch,
            seq_len=given.seq_len,
            seed=seed,
            patience=10**6,
            threads=given.threads,
        )
        begin, cpu = time.perf_counter(), time.process_time()
        assert distill(TEACHER, student, self.code, out, recipe, options, **texts) is not None
        seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        return out, {"tokens": json.loads((out / REPORT).read_text(encoding="utf-8"))["num_tokens"], **seconds}

    def runs(self, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield every loss with its figures for one seed."""
        first, _ = self.train("first", STUDENT, RECIPES[SFT], seed, replay=self.docs, replay_share=0.5)
        before = self.held_out.scores(first)
        yield "before", {"scores": before}
        for name, recipe in RECIPES.items():
            out, cost = self.train(name.replace(" ", ""), StudentCheckpoint(str(first)), recipe, seed)
            yield name, {"scores": self.held_out.scores(out), **cost}


def kl(run: dict[str, Any], kind: str) -> float:
    score: DistillScore = run["scores"][kind]
    assert score.kl is not None
    return score.kl / score.num_positions


def table(seeds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the figures of every loss over all seeds."""
    rows: dict[str, Any] = {}
    for name in seeds[0]:
        runs = [seed[name] for seed in seeds]
        before, plain = [seed["before"] for seed in seeds], [seed[SFT] for seed in seeds]
        rows[name] = {
            "kl": estimate([kl(run, CODE) for run in runs]),
            "gain": estimate([kl(b, CODE) - kl(a, CODE) for a, b in zip(runs, plain, strict=True)]),
            "kl_outside": estimate([kl(run, DOCUMENTATION) for run in runs]),
            "forgetting": estimate([kl(a, DOCUMENTATION) - kl(b, DOCUMENTATION) for a, b in zip(runs, before, strict=True)]),
            "runs": [{**run, "scores": {kind: score.as_dict() for kind, score in run["scores"].items()}} for run in runs],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-steps", type=int, default=600, help="of plain fine-tuning before the losses part")
    parser.add_argument("--steps", type=int, default=300, help="of every loss")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--characters", type=int, default=4_000_000, help="of the distillation set")
    parser.add_argument("--sequences", type=int, default=128, help="of each held-out text")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        experiment = Experiment(Path(name), options)
        seeds: list[dict[str, dict[str, Any]]] = []
        for seed in range(options.seeds):
            seeds.append({})
            for loss, run in experiment.runs(seed):
                seeds[-1][loss] = run
                print(f"seed {seed}, {loss}: KL {kl(run, CODE):.4f}, outside {kl(run, DOCUMENTATION):.4f}", flush=True)
        spec = TrainableModel.load(Path(name) / "0-first").spec
        parameters = {"teacher": num_parameters(experiment.held_out.teacher.spec), "student": num_parameters(spec)}
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    losses = table(seeds)
    for loss, row in losses.items():
        print(f"{loss}: gain {row['gain']}, forgetting {row['forgetting']}")
    result = {**provenance("distillation_losses", sys.argv), "parameters": parameters, "settings": settings, "losses": losses}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
