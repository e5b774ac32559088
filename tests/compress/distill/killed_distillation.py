"""A distillation that kills its own process at one moment, or counts the moments.

Moments are counted from 1: opened, renamed, made and removed files of the output and its work folder, and steps of the training.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from hasten.compress.distill.run import distill
from hasten.compress.distill.student import TeacherLayers
from hasten.training.callback import TrainingCallback
from hasten.training.distill.recipe import DistillRecipe
from hasten.training.options import TrainOptions

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
RECIPE = DistillRecipe(loss="js", hard_label_weight=0.1)
OPTIONS = TrainOptions(steps=6, batch=2, seq_len=32, lr=3e-3, save_every=0, threads=1)


class Moments(TrainingCallback):
    def __init__(self, out: Path, last: int) -> None:
        self.out, self.last, self.count = str(out), last, 0
        sys.addaudithook(self.hook)

    def on_step_end(self, step: int, total_steps: int, loss: float) -> None:
        self.next()

    def hook(self, event: str, given: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(given[0], str | os.PathLike) and os.fspath(given[0]).startswith(self.out):
            self.next()

    def next(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def run(teacher: Path, data: Path, replay: Path, out: Path, last: int, counter: Path) -> None:
    """Distil until the end or the moment ``last``. At the end the number of moments is written to ``counter``."""
    moments = Moments(out, last)
    distill(str(teacher), TeacherLayers("0,2"), data, out, RECIPE, OPTIONS, replay=replay, outside=replay, callback=moments)
    counter.write_text(str(moments.count))
