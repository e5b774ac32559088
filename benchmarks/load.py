"""What loading a model costs: seconds by phase and the most memory on the way, for each form of the weights.

``python benchmarks/load.py --model qwen3-0.6b --out benchmarks/results/load-qwen3-0.6b.json``

The checkpoint is read once before, so that it lies in the page cache; imports are not counted. Memory is RssAnon + RssShmem of a
process of its own, looked at every 5 ms: pages of the checkpoint's file that the system keeps are not the process's. The KV pool's
pages count when they are first written, not when they are reserved.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from engines import shapes
from hasten.bench.provenance import provenance

FORMS: dict[str, dict[str, Any]] = {"bf16": {}, "int8": {"quantization": "int8"}, "int4": {"quantization": "int4"}}
ALLOWED_FACTOR, ALLOWED_MORE = 1.15, 500e6  # of the repacked weights, and bytes


def memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return sum(1024 * int(found) for found in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))


def load(checkpoint: Path, form: str, threads: int) -> dict[str, Any]:
    """Once, in this process."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import hasten.entrypoints.wiring.build_engine  # noqa: F401
    from hasten import LLM

    most, done = [memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    llm = LLM(
        str(checkpoint),
        dtype="bfloat16",
        max_model_len=2048,
        kv_cache_memory="1GiB",
        threads=threads,
        speculative_method="off",
        **FORMS[form],
    )
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    about = llm.describe()
    return {"seconds": seconds, "phases": about["load_seconds"], "weight_bytes": about["weight_bytes"], "peak_bytes": max(most)}


def measure(checkpoint: Path, form: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--checkpoint", str(checkpoint), "--form", form, "--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "allowed_bytes": ALLOWED_FACTOR * found["weight_bytes"] + ALLOWED_MORE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, default=Path(".peers"), help="where the checkpoint is made")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        print(json.dumps(load(options.checkpoint, options.form, options.threads)))
        return
    checkpoint = shapes.checkpoint(options.model, options.work.resolve(), 0)
    for file in checkpoint.iterdir():
        file.read_bytes()
    rows = []
    for form in FORMS:
        runs = [measure(checkpoint, form, options.threads) for _ in range(options.repeats)]
        rows.append({"form": form, "runs": runs})
        seconds, peak = sorted(run["seconds"] for run in runs), max(run["peak_bytes"] for run in runs)
        phases = ", ".join(f"{name} {value:.2f}" for name, value in runs[0]["phases"].items())
        print(
            f"{form}: {seconds[len(seconds) // 2]:.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f}; {phases}), at most"
            f" {peak / 1e6:.0f} MB, {runs[0]['allowed_bytes'] / 1e6:.0f} allowed for {runs[0]['weight_bytes'] / 1e6:.0f} of weights"
        )
    result = {
        **provenance("load", sys.argv),
        "model": options.model,
        "threads": options.threads,
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
