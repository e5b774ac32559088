"""Soft prompts on the three tasks that ship: ``python benchmarks/soft_prompts.py --out benchmarks/results/soft_prompts.json``

Each task is split once. One soft prompt is trained on its train items; the validation items choose the step. The control is trained
in the same way on the same inputs with shuffled outputs, so that only their frequencies and their form can be learned. All scores
are exact matches on the true held-out items, which decided nothing.

    none        the prompt alone
    trained     after the trained soft prompt
    control     after the soft prompt of shuffled outputs
    constant    the most frequent output of the train items as the answer to every item: what frequencies alone give
    choice      of tasks with few outputs: the model's choice among them without a soft prompt, its bias taken away as in Zhao et
                al., 2021, "Calibrate before use": what it knows without training when the outputs are named

A model that learns which outputs there are can use what it knows already, so outputs in any order teach that much (Min et al.,
2022, "Rethinking the role of demonstrations"). The control is compared with ``choice`` where there is one, else with ``none``.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hasten import LLM
from hasten.bench.provenance import provenance
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.evaluate import default_params, evaluate
from hasten.prompts.evaluation import Evaluation, ItemResult, score_difference
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import open_metric
from hasten.prompts.optimizer import Workbench
from hasten.prompts.optimizers.soft_prompt import SoftPromptOptions, optimize
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem, read_prompt_task, task_names
from hasten.prompts.template import PromptTemplate
from hasten.training.training_run import REPORT

MAX_CHOICES = 10
SEED = 0  # of the split, the training and the shuffling
TASK_OPTIONS = TaskOptions(max_tokens=16)
PLAIN = TemplateVariant("plain", PromptTemplate("plain", "{{ input }}"))
METRIC = open_metric("exact_match")
Items = tuple[PromptItem, ...]


def shuffled(items: Items, seed: int) -> Items:
    """Return the same inputs, each with the output of another item."""
    outputs = [item.references for item in items]
    random.Random(seed).shuffle(outputs)
    return tuple(replace(item, references=output) for item, output in zip(items, outputs, strict=True))


def train(llm: LLM, train: Items, validation: Items, options: SoftPromptOptions, folder: Path) -> dict[str, Any]:
    """Train one soft prompt, and return it with the cost of the training. It counts even if validation does not choose it."""
    begin, cpu = time.perf_counter(), time.process_time()
    with RunFile(folder / "run.jsonl") as run_file:
        bench = Workbench(llm, train, validation, METRIC, TASK_OPTIONS, run_file, folder, SEED, lambda message: None)
        candidate = optimize(bench, PLAIN, options)
    seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    (report,) = folder.glob(f"soft-prompt-*/{REPORT}")
    losses = [(entry["step"], entry["loss"]) for entry in json.loads(report.read_text())["evaluations"]]
    facts = {"is_chosen": candidate.soft_prompt is not None, "tokens": bench.num_tokens, "validation_losses": losses, **seconds}
    return {"soft_prompt": llm.load_soft_prompt(report.parent), "facts": facts}


def answers(name: str, items: Items, outputs: Sequence[str]) -> Evaluation:
    """Return the scores of given answers, one per item."""
    scored = [(float(output in item.references), output) for item, output in zip(items, outputs, strict=True)]
    results = tuple(ItemResult(score=s, output=o, prompt_tokens=0, output_tokens=0, metric_tokens=0) for s, o in scored)
    return Evaluation(variant=name, metric=METRIC.name, low=0.0, high=1.0, items=items, results=results, seconds=0.0)


def choices(llm: LLM, train: Items, held_out: Items, outputs: Sequence[str]) -> list[str]:
    """Return the output of each held-out item whose log-probability exceeds its mean over the train items by most."""

    def totals(item: PromptItem) -> list[float]:
        return [score.total for score in llm.score(PLAIN.render(item.variables), outputs)]

    bias = [sum(column) / len(train) for column in zip(*map(totals, train), strict=True)]
    gains = ([own - mean for own, mean in zip(totals(item), bias, strict=True)] for item in held_out)
    return [outputs[gain.index(max(gain))] for gain in gains]


def measure(llm: LLM, name: str, options: SoftPromptOptions, folder: Path) -> dict[str, Any]:
    """Return the held-out scores of one task, their differences, and what soft prompts cost."""
    parts = read_prompt_task(Path(name)).split(seed=SEED)
    held_out, params = parts.held_out.use(), default_params(TASK_OPTIONS.max_tokens)
    trained = train(llm, parts.train, parts.validation, options, folder / name / "trained")
    given = (shuffled(parts.train, SEED), shuffled(parts.validation, SEED + 1))
    control = train(llm, *given, options, folder / name / "control")
    ((most_frequent, _),) = Counter(item.references[0] for item in parts.train).most_common(1)
    found = {
        "none": evaluate(llm, PLAIN, held_out, METRIC, params),
        "trained": evaluate(llm, PLAIN, held_out, METRIC, params, soft_prompt=trained["soft_prompt"]),
        "control": evaluate(llm, PLAIN, held_out, METRIC, params, soft_prompt=control["soft_prompt"]),
        "constant": answers("constant", held_out, [most_frequent] * len(held_out)),
    }
    pairs = [("trained", "none"), ("trained", "control"), ("control", "none"), ("control", "constant"), ("constant", "none")]
    outputs = sorted({item.references[0] for item in parts.train})
    if len(outputs) <= MAX_CHOICES:
        found["choice"] = answers("choice", held_out, choices(llm, parts.train, held_out, outputs))
        pairs += [("trained", "choice"), ("control", "choice")]
    return {
        "items": {"train": len(parts.train), "validation": len(parts.validation), "held_out": len(held_out)},
        "scores": {key: {"mean": one.mean, "interval": one.interval} for key, one in found.items()},
        "differences": {f"{a} - {b}": difference(found[a], found[b]) for a, b in pairs},
        "most_frequent_output": most_frequent,
        "prompt_tokens": {key: found[key].mean_prompt_tokens for key in ("none", "trained")},
        "training": {"trained": trained["facts"], "control": control["facts"]},
    }


def difference(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    found = score_difference(first, second)
    return {"difference": found.difference, "interval": found.interval}


def show(name: str, row: dict[str, Any]) -> None:
    scores = ", ".join(f"{key} {value['mean']:.3f}" for key, value in row["scores"].items())
    print(
        f"{name}: {scores}; {row['training']['trained']['seconds']:.0f} s, {row['training']['trained']['cpu_seconds']:.0f} of CPU"
    )
    for key, value in row["differences"].items():
        low, high = value["interval"]
        print(f"  {key}: {value['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=task_names())
    parser.add_argument("--steps", type=int, default=SoftPromptOptions().steps)
    parser.add_argument("--virtual-tokens", type=int, default=SoftPromptOptions().virtual_tokens)
    parser.add_argument("--batch", type=int, default=SoftPromptOptions().batch)
    parser.add_argument("--learning-rate", type=float, default=SoftPromptOptions().learning_rate)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    options = SoftPromptOptions(
        steps=given.steps, virtual_tokens=given.virtual_tokens, batch=given.batch, learning_rate=given.learning_rate
    )
    threads = {} if given.threads is None else {"threads": given.threads}
    result = {**provenance("soft_prompts", sys.argv), "seed": SEED, "options": asdict(options), "tasks": {}}
    with tempfile.TemporaryDirectory() as folder, LLM("demo", dtype="float32", max_model_len=256, **threads) as llm:
        result["engine"] = {key: value for key, value in llm.describe().items() if key != "folder"}
        for name in given.tasks:
            result["tasks"][name] = row = measure(llm, name, options, Path(folder))
            show(name, row)
            if given.out:
                given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
