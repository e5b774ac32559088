"""A gradual run whose process is killed at random moments and started again, until it is done.

``python -m tests.compress.prune.killed_runs MODEL TEXT OUT KILLS SEED`` prints the number of kills. The process imports hasten
once, and forks before it computes anything.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from hasten.compress.prune import gradual
from hasten.compress.prune.options import PruneOptions
from hasten.compress.prune.run import run_pruning
from hasten.core.errors import HastenError
from hasten.training.target_model import TargetModel

WEIGHTS = "model.safetensors"
OPTIONS = PruneOptions(
    ratio=0.5, steps=3, recover_steps=6, recover_batch=2, recover_lr=1e-2, seq_len=32, samples=4, threads=1, method="weight"
)


def main() -> None:
    model, text, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    kills, draw = int(sys.argv[4]), random.Random(sys.argv[5])
    began = time.monotonic()
    assert run(model, text, out.with_name("whole")) == 0
    duration = time.monotonic() - began
    killed = 0
    while True:
        delay = draw.uniform(0.02, 0.5) * duration if killed < kills else None
        status = run(model, text, out, delay)
        check_folders(out)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        killed += 1
    print(json.dumps({"killed": killed}))


def run(model: str, text: Path, out: Path, delay: float | None = None) -> int:
    """Return the exit code of a process that runs to the end, or is killed after ``delay`` seconds."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        save_after_every_step()
        result = run_pruning(model, out, OPTIONS, data=text, calibration=text, resume=True)
        os._exit(0 if result is not None else 1)
    timer = None if delay is None else threading.Timer(delay, os.kill, (child, signal.SIGKILL))
    if timer is not None:
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer is not None:
        timer.cancel()
    return os.waitstatus_to_exitcode(status)


def save_after_every_step() -> None:
    train_options = gradual.train_options
    gradual.train_options = lambda *arguments: dataclasses.replace(train_options(*arguments), save_every=0.0)


def check_folders(out: Path) -> None:
    """Assert that every folder with a final name is a model, and that a result that loads before it has one is complete."""
    for config in out.parent.rglob("config.json"):
        folder = config.parent
        if folder.name == "result" or folder.suffix == ".partial":
            try:
                TargetModel.load(folder)
            except HastenError:
                continue
        TargetModel.load(folder)
        if folder.name in ("result", "out"):
            assert (folder / WEIGHTS).read_bytes() == (out.with_name("whole") / WEIGHTS).read_bytes(), folder


if __name__ == "__main__":
    main()
