"""Compare hasten with other CPU engines: the same checkpoint, token ids and number of threads.

``python benchmarks/peers.py --model qwen3-0.6b`` (or ``make peers``) installs each engine in its own virtual environment. It
makes the checkpoint (random weights of a published shape, or the shipped demo model), converts it for every engine and
measures. It writes ``benchmarks/results/peers-<model>.json``, a table (``.md``) and the roofline (``.svg``).

Every engine is a process with its own Python that lives through one phase. A phase has all engines with one kind of weights: bf16,
int8, int4, int8 with an 8-bit KV cache, or a checkpoint that is quantised before hasten reads it (GPTQ int4, GGUF Q4_K_M, FP8). Its
engines alternate, A B C A B C; all phases at once would not fit in 24 GB. A signal stops the process between its repeats, so it
cannot disturb the others, and every engine keeps its own thread settings. The first repeat of every workload is a warm-up. All
engines decode greedily and ignore end-of-sequence tokens. The machine's limits are measured before, between and after the phases.
OpenVINO has an 8-bit KV cache by default; hasten has one with integer weights.

A goal is void if one of its engines is missing. Only onnxruntime-genai is optional.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines import environment, goals, shapes
from engines.limits import Limits, ops_per_second
from engines.registry import ENGINES, PHASES, EngineSpec, Phase
from engines.roofline import draw_roofline
from engines.rounds import EngineGroup, Run, add_agreement
from engines.table import markdown
from engines.workloads import Demand, Workload, workloads
from hasten.bench.provenance import provenance, versions
from hasten.bench.report import spread

HERE = Path(__file__).parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, default=Path(".peers"), help="where environments, checkpoints and logs are kept")
    parser.add_argument(
        "--only", nargs="+", choices=[e.name for e in ENGINES], help="these engines; the goals of the others are void"
    )
    parser.add_argument("--works", nargs="+", choices=list(workloads(10**6, False)), help="these workloads")
    parser.add_argument("--weights", nargs="+", choices=list(dict.fromkeys(p.weights for p in PHASES)), help="these weights")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each engine in each workload, after its warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="short workloads that only check whether all engines run")
    parser.add_argument("--out", type=Path, help="the JSON file; the table and the roofline have the same name")
    options = parser.parse_args()
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    return options


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def install(specs: Sequence[EngineSpec], folder: Path) -> dict[str, str]:
    """Install the environments of the engines, and return those that failed with the reason."""
    failed = {}
    for name in dict.fromkeys(spec.environment for spec in specs if spec.environment):
        try:
            environment.python_of(name, folder)
        except (subprocess.CalledProcessError, OSError) as error:
            failed[name] = f"it could not be installed: {error}"
            log(f"{name}: {failed[name]}")
    return failed


def run_phase(phase: Phase, run: Run, specs: Sequence[EngineSpec], selected: Sequence[Workload]) -> EngineGroup:
    phase_workloads = [workload for workload in selected if workload.name in phase.workloads]
    participants = [e for e in specs if any(e.runs(phase.weights, phase.kv, w.name) for w in phase_workloads)]
    group = EngineGroup(run, phase)
    try:
        if phase_workloads:
            group.load(participants, phase_workloads)
        for workload in phase_workloads:
            group.compare(workload)
    finally:
        group.end()
    return group


def measure(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    phases = [phase for phase in PHASES if not options.weights or phase.weights in options.weights]
    named_specs = [spec for spec in ENGINES if not options.only or spec.name in options.only]
    specs = [spec for spec in named_specs if any(phase.weights in spec.entries for phase in phases)]
    failed = install(specs, run.folder)
    missing = [
        {"engine": e.name, "weights": w, "kv": None, "work": None, "reason": failed[e.environment]}
        for e in specs
        if e.environment in failed
        for w in dict.fromkeys(phase.weights for phase in phases)
        if w in e.entries
    ]
    specs = [spec for spec in specs if spec.environment not in failed]
    named = workloads(run.costs.max_positions, options.quick)
    selected = [workload for name, workload in named.items() if not options.works or name in options.works]
    limits, rows, loaded = Limits(run.folder, run.threads), [], {}
    for phase in phases:
        limits.measure()
        group = run_phase(phase, run, specs, selected)
        rows += group.rows
        missing += group.missing
        loaded[phase.weights + (" and 8-bit KV" if phase.kv else "")] = group.loaded
    limits.measure()
    limit = limits.report()
    add_agreement(rows)
    for row in rows:
        minimum = Demand(**row["demand"]).seconds(ops_per_second(limit, row["activations"]), limit["bytes_per_second"])
        row["share_of_limit"] = minimum / spread(row["seconds"])["median"]
    return {"limits": limit, "rows": rows, "missing": missing, "engines": loaded}


def peer_versions(engines: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the versions of the main packages, as the engines reported them."""
    names = {"llama_cpp_python", "openvino", "openvino-genai", "optimum-intel", "ctranslate2", "onnxruntime", "onnxruntime-genai"}
    return {k: v for phase in engines.values() for about in phase.values() for k, v in about.items() if k in names}


def kernels(engines: dict[str, dict[str, Any]]) -> str:
    """Return the instruction set of hasten's kernels, or "" if no phase had hasten."""
    described = [about["engine"]["kernels"] for phase in engines.values() for about in phase.values() if "engine" in about]
    return described[0].removeprefix("native ") if described else ""


def main() -> None:
    options = parse()
    folder = options.work.resolve()
    start = time.monotonic()
    checkpoint = shapes.checkpoint(options.model, folder, options.seed)
    run = Run(
        folder=folder,
        checkpoint=checkpoint,
        costs=shapes.costs(checkpoint),
        threads=options.threads,
        repeats=options.repeats,
        seed=options.seed,
        python=Path(sys.executable),
        log=log,
    )
    measured = measure(options, run)
    result = {
        **provenance("peers", sys.argv),
        "versions": versions() | peer_versions(measured["engines"]),
        "model": options.model,
        "config": dataclasses.asdict(run.costs),
        "threads": options.threads,
        "repeats": options.repeats,
        "seed": options.seed,
        "quick": options.quick,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "goals": goals.results(measured["rows"], kernels(measured["engines"]), options.weights),
        **measured,
    }
    write(options.out or HERE / "results" / f"peers-{options.model}.json", result)


def write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    table = markdown(result)
    file.with_suffix(".md").write_text(table, encoding="utf-8")
    file.with_suffix(".svg").write_text(draw_roofline(result), encoding="utf-8")
    print(f"\n{table}\nwritten: {file}, with the table and the roofline")


if __name__ == "__main__":
    main()
