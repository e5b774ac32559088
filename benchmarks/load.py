"""The cost of loading a model: seconds by phase and peak memory, for each quantization of the weights.

``python benchmarks/load.py --model qwen3-0.6b --out benchmarks/results/load-qwen3-0.6b.json``

The checkpoint is read once in advance, so that it is in the page cache; imports are not measured. Memory is RssAnon + RssShmem of a
separate process, sampled every 5 ms, which excludes the page cache. KV cache pages count when they are first written, not when they
are reserved.
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

QUANTIZATIONS: dict[str, dict[str, Any]] = {"bf16": {}, "int8": {"quantization": "int8"}, "int4": {"quantization": "int4"}}
LIMIT_FACTOR, LIMIT_BYTES = 1.15, 500e6  # peak memory may reach this multiple of the weights plus these bytes


def memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return sum(1024 * int(found) for found in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))


def load(checkpoint: Path, form: str, threads: int) -> dict[str, Any]:
    """Load the model once in this process and return the measurements."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import hasten.entrypoints.wiring.build_engine  # noqa: F401
    from hasten import LLM

    peak, done = [memory()], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], memory())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start = time.perf_counter()
    llm = LLM(
        str(checkpoint),
        dtype="bfloat16",
        max_model_len=2048,
        kv_cache_memory="1GiB",
        threads=threads,
        speculative_method="off",
        **QUANTIZATIONS[form],
    )
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    description = llm.describe()
    return {
        "seconds": seconds,
        "phases": description["load_seconds"],
        "weight_bytes": description["weight_bytes"],
        "peak_bytes": max(peak),
    }


def measure(checkpoint: Path, form: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--checkpoint", str(checkpoint), "--form", form, "--threads", str(threads)]
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measurement: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return {**measurement, "allowed_bytes": LIMIT_FACTOR * measurement["weight_bytes"] + LIMIT_BYTES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=shapes.MODELS, default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, default=Path(".peers"), help="folder of the generated checkpoint")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=QUANTIZATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        print(json.dumps(load(options.checkpoint, options.form, options.threads)))
        return
    checkpoint = shapes.checkpoint(options.model, options.work.resolve(), 0)
    for file in checkpoint.iterdir():
        file.read_bytes()
    rows = []
    for form in QUANTIZATIONS:
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
