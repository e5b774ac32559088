"""hasten beside its CPU peers: one checkpoint, the same token ids, the same number of threads, in turn A B A B, in one run.

``python benchmarks/peers.py --model qwen3-0.6b`` (or ``make peers``) installs each peer in its own virtual environment, makes the
checkpoint (random weights of a published shape, or the shipped demo model), converts it for every peer, measures, and writes
``benchmarks/results/peers-<model>.json``, a table beside it (``.md``) and the roofline (``.svg``).

Every engine is a process of its own, run by its own Python, that stays alive through a phase. A phase is all engines of one kind
of weights (bf16, int8, int4, and int8 with 8-bit keys and values): within it the engines take turns, A B C A B C. All phases at
once would not fit in 24 GB. Between its turns a process is stopped by a signal, so it cannot disturb the others, and each waits
for its threads as its makers chose. The first turn of every work is a warm-up. All engines decode greedily and past any
end-of-sequence token. The machine's limits are measured before the first phase, between phases and after the last.
OpenVINO keeps keys and values in 8 bits unless told otherwise; hasten is told to do so beside quantised weights, not beside bf16.

A peer that is missing voids the lines of the goal that it belongs to. Only onnxruntime-genai is let off: it is for where it works.
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
from engines.picture import roofline
from engines.roster import PHASES, ROSTER, Entrant, Phase
from engines.table import markdown
from engines.turns import Convoy, Run, agreement
from engines.works import Demand, Work, works
from hasten.bench.provenance import provenance, versions
from hasten.bench.report import spread

HERE = Path(__file__).parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, default=Path(".peers"), help="where environments, checkpoints and logs are kept")
    parser.add_argument(
        "--only", nargs="+", choices=[e.name for e in ROSTER], help="these engines; the lines of the others are void"
    )
    parser.add_argument("--works", nargs="+", choices=list(works(10**6, False)), help="these works")
    parser.add_argument("--weights", nargs="+", choices=list(shapes.BYTES), help="these weights")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each engine in each work, after its warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="short works, to see whether all engines run; no result")
    parser.add_argument("--out", type=Path, help="the JSON file; the table and the picture go beside it")
    options = parser.parse_args()
    if options.repeats < 1 or options.threads < 1:
        parser.error("--repeats and --threads begin at 1")
    return options


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def install(entrants: Sequence[Entrant], work: Path) -> dict[str, str]:
    """Environment -> why it could not be installed."""
    failed = {}
    for name in dict.fromkeys(entrant.environment for entrant in entrants if entrant.environment):
        try:
            environment.python_of(name, work)
        except (subprocess.CalledProcessError, OSError) as error:
            failed[name] = f"it could not be installed: {error}"
            tell(f"{name}: {failed[name]}")
    return failed


def run_phase(phase: Phase, run: Run, entrants: Sequence[Entrant], chosen: Sequence[Work]) -> Convoy:
    here = [work for work in chosen if work.name in phase.works]
    taking_part = [e for e in entrants if any(e.runs(phase.weights, phase.kv, work.name) for work in here)]
    convoy = Convoy(run, phase)
    try:
        if here:
            convoy.load(taking_part, here)
        for work in here:
            convoy.compare(work)
    finally:
        convoy.end()
    return convoy


def measure(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    entrants = [entrant for entrant in ROSTER if not options.only or entrant.name in options.only]
    failed = install(entrants, run.folder)
    missing = [
        {"engine": e.name, "weights": w, "kv": None, "work": None, "reason": failed[e.environment]}
        for e in entrants
        if e.environment in failed
        for w in e.works
    ]
    entrants = [entrant for entrant in entrants if entrant.environment not in failed]
    named = works(run.costs.max_positions, options.quick)
    chosen = [work for name, work in named.items() if not options.works or name in options.works]
    limits, rows, loaded = Limits(run.folder, run.threads), [], {}
    for phase in PHASES:
        if options.weights and phase.weights not in options.weights:
            continue
        limits.measure()
        convoy = run_phase(phase, run, entrants, chosen)
        rows += convoy.rows
        missing += convoy.missing
        loaded[phase.weights + (" and 8-bit KV" if phase.kv else "")] = convoy.loaded
    limits.measure()
    found = limits.report()
    agreement(rows)
    for row in rows:
        least = Demand(**row["demand"]).seconds(ops_per_second(found, row["weights"]), found["bytes_per_second"])
        row["share_of_limit"] = least / spread(row["seconds"])["median"]
    return {"limits": found, "rows": rows, "missing": missing, "engines": loaded}


def peer_versions(engines: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The packages that matter, as each engine reported them."""
    names = {"llama_cpp_python", "openvino", "openvino-genai", "optimum-intel", "ctranslate2", "onnxruntime", "onnxruntime-genai"}
    return {k: v for phase in engines.values() for about in phase.values() for k, v in about.items() if k in names}


def main() -> None:
    options = parse()
    folder = options.work.resolve()
    begin = time.monotonic()
    checkpoint = shapes.checkpoint(options.model, folder, options.seed)
    run = Run(
        folder=folder,
        checkpoint=checkpoint,
        costs=shapes.costs(checkpoint),
        threads=options.threads,
        repeats=options.repeats,
        seed=options.seed,
        python=Path(sys.executable),
        tell=tell,
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
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "goals": goals.lines(measured["rows"]),
        **measured,
    }
    write(options.out or HERE / "results" / f"peers-{options.model}.json", result)


def write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result) + "\n", encoding="utf-8")
    table = markdown(result)
    file.with_suffix(".md").write_text(table, encoding="utf-8")
    file.with_suffix(".svg").write_text(roofline(result), encoding="utf-8")
    print(f"\n{table}\nwritten: {file} and beside it the table and the picture")


if __name__ == "__main__":
    main()
