"""Hard prompts found by gradients, beside a planted one and beside random search, over ten seeds.

``python benchmarks/hard_prompts.py demo --out benchmarks/results/hard_prompts.json``

A seed draws random hard prompts of four tokens and plants the strongest: the references of a task are the model's greedy outputs
after it. The score is the log-likelihood of the references, on items that the search does not see.

A method's share is (score - empty) / (planted - empty), where ``empty`` is the score without a hard prompt. A share of 1 is as good
as the planted prompt, which need not be the best one; the goal is 0.8. ``random`` is the control: it compares as many random hard
prompts as GCG computes.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hasten import LLM, SamplingParams
from hasten.bench.provenance import provenance
from hasten.bench.report import spread
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.hard_prompt.printable_tokens import printable_tokens
from hasten.prompts.hard_prompt.prompt_layout import PromptLayout
from hasten.prompts.hard_prompt.search import COMPARED_BATCHES, HardPromptSearch, Proposal
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.metric import open_metric
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.optimizers import gcg, pez
from hasten.prompts.run_file import RunFile
from hasten.prompts.task import PromptItem
from hasten.prompts.template import PromptTemplate

GOAL = 0.8
LENGTH = 4  # tokens of all hard prompts
PLANTS = 8  # random hard prompts of which the strongest is planted
OUTPUT_TOKENS = 8
NUM_TRAIN, NUM_VALIDATION = 8, 4  # the other items are held out
NAMES = "read parse load open find sort merge split count send print update remove insert compute encode decode check start stop"
INITIAL = TemplateVariant("initial", PromptTemplate("initial", "{{ input }}"))
METRIC = open_metric("log_likelihood")


class RandomPrompts:
    """Proposes random tokens that read back."""

    def __init__(self, search: HardPromptSearch) -> None:
        self._search, self._tokens = search, search.is_printable_V.nonzero()[:, 0].tolist()

    def start(self, ids: Sequence[int]) -> Mapping[str, Tensor]:
        return {}

    def advance(self, step: int, tensors: Mapping[str, Tensor]) -> Proposal:
        draw = random.Random(self._search.generator(step).initial_seed())
        return Proposal(tensors, random_ids(self._search.layout, self._tokens, draw))


def random_ids(layout: PromptLayout, tokens: Sequence[int], draw: random.Random) -> tuple[int, ...]:
    while True:
        ids = tuple(draw.choices(tokens, k=LENGTH))
        if layout.reads_back(ids):
            return ids


@dataclass(frozen=True)
class PlantedTask:
    variant: TemplateVariant
    items: tuple[PromptItem, ...]


def planted_task(llm: LLM, variant: TemplateVariant) -> PlantedTask:
    """Return the items whose references are the model's outputs with this variant."""
    inputs = [f"def {name}(self):\n" for name in NAMES.split()]
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    outputs = llm.generate([variant.render({"input": text}) for text in inputs], params, use_tqdm=False)
    pairs = enumerate(zip(inputs, outputs, strict=True), 1)
    items = [PromptItem(line, {"input": text}, (output.outputs[0].text,)) for line, (text, output) in pairs]
    return PlantedTask(variant, tuple(item for item in items if item.references[0].strip()))


@contextmanager
def workbench(llm: LLM, items: Sequence[PromptItem], seed: int) -> Iterator[Workbench]:
    num = NUM_TRAIN + NUM_VALIDATION
    with tempfile.TemporaryDirectory() as folder, RunFile(Path(folder) / "run.jsonl") as run_file:
        yield Workbench(
            llm=llm,
            train=tuple(items[:NUM_TRAIN]),
            validation=tuple(items[NUM_TRAIN:num]),
            metric=METRIC,
            options=TaskOptions(),
            run_file=run_file,
            folder=Path(folder),
            seed=seed,
            on_log=lambda message: None,
        )


def strongest_plant(llm: LLM, seed: int) -> PlantedTask:
    """Return the task of the random hard prompt that raises the likelihood of its own outputs most."""
    draw = random.Random(seed)
    tokens = printable_tokens(llm.tokenizer, llm.describe()["vocab_size"])
    layout = PromptLayout(llm.tokenizer, INITIAL, [PromptItem(1, {"input": "def"}, ("x",))], TaskOptions())
    tasks = [planted_task(llm, layout.variant(random_ids(layout, tokens, draw), "planted")) for _ in range(PLANTS)]

    def gain(task: PlantedTask) -> float:
        with workbench(llm, task.items, seed) as bench:
            return bench.evaluate(task.variant, task.items).mean - bench.evaluate(INITIAL, task.items).mean

    return max(tasks, key=gain)


def measure(llm: LLM, task: PlantedTask, seed: int, optimize: Callable[[Workbench], Candidate]) -> dict[str, Any]:
    """Return the figures of one method on one task."""
    held_out = task.items[NUM_TRAIN + NUM_VALIDATION :]
    with workbench(llm, task.items, seed) as bench:
        begin = time.process_time()
        found = optimize(bench)
        cpu_seconds, num_tokens = time.process_time() - begin, bench.num_tokens
        variants = {"empty": INITIAL, "planted": task.variant, "found": found.variant}
        scores = {name: bench.evaluate(variant, held_out).mean for name, variant in variants.items()}
    share = (scores["found"] - scores["empty"]) / (scores["planted"] - scores["empty"])
    text = found.variant.template.defaults.get("hard_prompt", "")
    return {"share": share, **scores, "text": text, "num_tokens": num_tokens, "cpu_seconds": cpu_seconds}


def compare(llm: LLM, seed: int, gcg_options: gcg.GcgOptions, pez_options: pez.PezOptions) -> dict[str, dict[str, Any]]:
    """Return the figures of all methods on the task of one seed."""
    task = strongest_plant(llm, seed)
    found = {
        "gcg": measure(llm, task, seed, lambda bench: gcg.optimize(bench, INITIAL, gcg_options)),
        "pez": measure(llm, task, seed, lambda bench: pez.optimize(bench, INITIAL, pez_options)),
    }
    compared = min(NUM_TRAIN, COMPARED_BATCHES * gcg_options.batch)  # items that a proposal of any method is compared on
    per_step = (gcg_options.num_candidates + 2) * gcg_options.batch + compared  # items of a step of GCG; 2: the gradient
    steps = round(gcg_options.steps * per_step / compared)
    options = gcg.GcgOptions(length=LENGTH, steps=steps, batch=gcg_options.batch)

    def control(bench: Workbench) -> Candidate:
        search = HardPromptSearch("random", bench, INITIAL, options)
        return search.run(RandomPrompts(search))

    return found | {"random": measure(llm, task, seed, control)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--gcg-steps", type=int, default=12)
    parser.add_argument("--pez-steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gcg_options = gcg.GcgOptions(length=LENGTH, steps=options.gcg_steps, batch=options.batch)
    pez_options = pez.PezOptions(length=LENGTH, steps=options.pez_steps, batch=options.batch)
    engine = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory": "64MiB", "speculative_method": "off"}
    header = provenance("hard_prompts", sys.argv)  # the commit may change while it runs
    rows = []
    with LLM(options.model, threads=options.threads, **engine) as llm:
        description = llm.describe()
        for seed in range(options.seeds):
            rows.append(compare(llm, seed, gcg_options, pez_options))
            shares = ", ".join(f"{name} {row['share']:.2f} ({row['text'].strip()!r})" for name, row in rows[-1].items())
            print(f"seed {seed}: {shares}", flush=True)
    methods = {}
    for name in rows[0]:
        figures = {key: spread([row[name][key] for row in rows]) for key in ("share", "num_tokens", "cpu_seconds")}
        reached = sum(row[name]["share"] >= GOAL for row in rows)
        methods[name] = {**figures, "mean_share": statistics.fmean(row[name]["share"] for row in rows), "reached": reached}
        print(
            f"{name}: median share {figures['share']['median']:.2f}, {reached} of {len(rows)} reach {GOAL}; "
            f"{figures['num_tokens']['median']:,.0f} tokens, {figures['cpu_seconds']['median']:.1f} s of one core"
        )
    result = {**header, "engine": description, "goal": GOAL, "length": LENGTH}
    result |= {
        "gcg_steps": options.gcg_steps,
        "pez_steps": options.pez_steps,
        "batch": options.batch,
        "methods": methods,
        "seeds": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
