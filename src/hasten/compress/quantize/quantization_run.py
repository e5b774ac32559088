"""``QuantizationRun``: everything that one run reads and writes, and its steps.

Shape suffixes: B sequences · S tokens per sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hasten.checkpoints.quantized.writers.base import FormatWriter
from hasten.compress.quantize.plan import LayerPlan
from hasten.compress.quantize.recipe import Recipe
from hasten.compress.work_folder import WorkFolder
from hasten.models.layer_stream import LayerStream

Progress = Callable[[int, int], None]  # (steps done, steps in all)
ShouldStop = Callable[[], bool]


class Stopped(Exception):
    """``should_stop`` returned True."""


@dataclass(slots=True)
class Steps:
    """The steps of a run, for progress and to stop it."""

    total: int
    progress: Progress | None
    should_stop: ShouldStop
    done: int = 0

    def tick(self) -> None:
        """Count a step. Raises ``Stopped``."""
        self.advance_to(self.done + 1)

    def finish(self, layers: int, num_layers: int, share: int = 1) -> None:
        """Count the steps of the first ``layers`` as done. Raises ``Stopped``.

        All layers take one ``share``-th of the run.
        """
        self.advance_to(layers * self.total // (share * num_layers))

    def advance_to(self, done: int) -> None:
        """Set the number of steps that are done. Raises ``Stopped``."""
        self.show(done)
        if self.should_stop():
            raise Stopped

    def show(self, done: int) -> None:
        """Set the number of steps that are done, where stopping is asked for elsewhere."""
        self.done = done
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


@dataclass(frozen=True, slots=True)
class QuantizationRun:
    stream: LayerStream
    plans: tuple[LayerPlan, ...]
    recipe: Recipe
    writer: FormatWriter
    ids_BS: Tensor | None  # calibration text; None: the recipe needs none
    work: WorkFolder
    steps: Steps


def part_name(index: int, bits: int | None = None) -> str:
    """Return the name of the part with the tensors of a layer; ``bits`` tell several candidates apart."""
    return f"layer-{index:05}" + ("" if bits is None else f"-{bits:02}-bits")
