"""An optimisation that is killed by SIGKILL at random moments ends as one that is not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.exhaustive import repeats
from tests.prompts.getter_task import getter_task

PROGRAM = Path(__file__).with_name("killed_optimization.py")
ARGUMENTS = ("prompt", "optimize", "demo", "task.jsonl", "--method", "demonstrations", "--shots", "2", "--num-candidates", "3")
SETTINGS = ("--max-tokens", "8", "--threads", "1", "--kv-cache-memory", "16MiB", "--max-model-len", "256", "--json")


def start(folder: Path, out: str, last: int) -> int:
    """Run the command in ``folder`` until its end or its moment ``last``, and return its exit code."""
    command = [sys.executable, str(PROGRAM), str(last), out, *ARGUMENTS, "--out", out, *SETTINGS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    environment |= {"LOG": str(folder / f"{out}.log"), "HASTEN_CACHE": str(folder / f"{out}.cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def log(folder: Path, out: str) -> list[str]:
    return (folder / f"{out}.log").read_text().splitlines() if (folder / f"{out}.log").exists() else []


def result(folder: Path, out: str) -> tuple[dict[str, Any], str, list[str]]:
    """Return the report without times, the prompt, and the files."""
    report = json.loads((folder / out / "report.json").read_text())
    for part in ("initial", "best"):
        del report[part]["prompt_seconds"]
    return report, (folder / out / "prompt.yaml").read_text(), sorted(os.listdir(folder / out))


def test_a_killed_optimisation_goes_on(tmp_path: Path) -> None:
    getter_task(tmp_path / "task.jsonl", 24)
    assert start(tmp_path, "expected", 0) == 0
    expected = result(tmp_path, "expected")
    read, end = log(tmp_path, "expected")
    num_moments, generator, num_killed = int(end.split()[1]), random.Random(5), 0
    assert read == "read True" and num_moments > 60
    while num_killed < repeats("optimisation kills"):
        out = f"out{num_killed}"
        first, code = num_killed, -signal.SIGKILL
        while code and num_killed < repeats("optimisation kills"):
            code = start(tmp_path, out, generator.randint(1, num_moments))
            num_killed += code != 0
        if code:
            assert start(tmp_path, out, 0) == 0
        assert result(tmp_path, out) == expected and num_killed > first
        assert {line for line in log(tmp_path, out) if line.startswith("read")} == {"read True"}
