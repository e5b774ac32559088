"""Time and peak memory of a quantisation, and whether a run that was killed gives the same bytes.

``python benchmarks/quantisation_time.py MODEL --out quantise-qwen3-0.6b.json``

The model is quantised once with all samples. Then, with ``--short-samples``, once without and once with a kill -9 in the middle and
``--resume``. Peak memory is the largest resident set, mapped pages of the weight files included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hasten.bench.provenance import provenance

SCRIPT = """
import os, signal, sys
from pathlib import Path
from hasten.compress.quantize.options import QuantizeOptions
from hasten.compress.quantize.quantize import quantize

model, out, method, samples, kill_at, resume = sys.argv[1:]

def progress(done, total):
    if done >= float(kill_at) * total:
        os.kill(os.getpid(), signal.SIGKILL)

quantize(model, Path(out), QuantizeOptions(method=method, samples=int(samples)), resume=resume == "resume", progress=progress)
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--short-samples", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        whole = run(options, parent / "whole", options.samples)
        print(f"{whole['seconds']:.0f} s, {whole['peak_bytes'] / 1e9:.2f} GB", file=sys.stderr)
        run(options, parent / "short", options.short_samples)
        killed = run(options, parent / "killed", options.short_samples, kill_at=0.6)
        assert killed["code"] == -signal.SIGKILL and not (parent / "killed").exists()
        resumed = run(options, parent / "killed", options.short_samples, resume="resume")
        equal = digests(parent / "short") == digests(parent / "killed")
        result = {
            **provenance("quantisation time", sys.argv),
            "model": Path(options.model).name,
            "method": options.method,
            "samples": options.samples,
            "seq_len": 512,
            "threads": len(os.sched_getaffinity(0)),
            **{key: whole[key] for key in ("seconds", "peak_bytes")},
            "bytes": sum(file.stat().st_size for file in (parent / "whole").glob("*.safetensors")),
            "resumed": {"seconds_before_kill": killed["seconds"], "seconds_after": resumed["seconds"], "same_bytes": equal},
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def run(options: argparse.Namespace, out: Path, samples: int, *, kill_at: float = 2.0, resume: str = "") -> dict[str, Any]:
    """Quantise in a process of its own, and return its exit code, wall time and peak memory."""
    arguments = [options.model, str(out), options.method, str(samples), str(kill_at), resume]
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 or kill_at < 1, process.returncode
    return {"code": process.returncode, "seconds": time.perf_counter() - started, "peak_bytes": usage.ru_maxrss * 1024}


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file but the model card, which names the folder."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.name != "README.md"}


if __name__ == "__main__":
    main()
