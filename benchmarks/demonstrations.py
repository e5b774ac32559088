"""What demonstrations are worth on held-out items, and what shuffled ones are.

``python benchmarks/demonstrations.py --out benchmarks/results/demonstrations.json``

A task of 240 items (``tests/prompts/getter_task.py``): for ``self.NAME = NAME``, the statement ``return self.NAME``. Each number of
shots runs with several seeds, which decide the split and the sets. The control has the outputs of other items.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.prompts.getter_task import getter_task

from hasten import LLM
from hasten.bench.provenance import provenance
from hasten.entrypoints.task_options import TaskOptions
from hasten.prompts.metric import open_metric
from hasten.prompts.optimize import Optimization, input_template, optimize
from hasten.prompts.optimizers.demonstrations import DemonstrationOptions
from hasten.prompts.task import PromptTask


def measure(llm: LLM, task: PromptTask, folder: Path, shots: int, num_candidates: int, seeds: int) -> dict[str, Any]:
    """Return the mean figures of one number of shots."""
    reports = []
    for seed in range(seeds):
        wanted = Optimization(
            task=task,
            initial=input_template(task.variables),
            method="demonstrations",
            options=DemonstrationOptions(shots=shots, num_candidates=num_candidates),
            metric=open_metric("exact_match"),
            task_options=TaskOptions(max_tokens=16),
            seed=seed,
        )
        reports.append(optimize(llm, wanted, folder / f"{shots}-{seed}"))

    def mean(values: Sequence[float]) -> float:
        return round(statistics.fmean(values), 4)

    return {
        "shots": shots,
        "runs": len(reports),
        "real": sum(report.summary.is_real for report in reports),
        "before": mean([report.initial.held_out for report in reports]),
        "after": mean([report.best.held_out for report in reports]),
        "differences": [round(report.summary.difference, 4) for report in reports],
        "intervals": [report.summary.difference_interval for report in reports],
        "tokens": round(mean([report.summary.optimization_tokens for report in reports])),
        "prompt_tokens": [mean([getattr(report, part).prompt_tokens for report in reports]) for part in ("initial", "best")],
        "prompt_seconds": [mean([getattr(report, part).prompt_seconds for report in reports]) for part in ("initial", "best")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--num-candidates", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    engine = {} if options.threads is None else {"threads": options.threads}
    rows: dict[str, list[dict[str, Any]]] = {"task": [], "shuffled": []}
    with tempfile.TemporaryDirectory() as name, LLM(options.model, max_model_len=512, **engine) as llm:
        os.environ["HASTEN_CACHE"] = f"{name}/cache"  # these runs do not count as those of the user
        for kind in rows:
            task = getter_task(Path(name, f"{kind}.jsonl"), options.items, are_shuffled=kind == "shuffled")
            for shots in options.shots:
                row = measure(llm, task, Path(name, kind), shots, options.num_candidates, options.seeds)
                rows[kind].append(row)
                print(f"{kind}: {json.dumps(row)}", flush=True)
        result = {
            **provenance("demonstrations", sys.argv),
            "engine": llm.describe(),
            "items": options.items,
            "num_candidates": options.num_candidates,
            "rows": rows,
        }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
