"""``Rounding``: a method that turns a matrix into codes."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.layers.formats.stored_matrix import QuantizedRows


class Rounding(Protocol):
    """One method.

    Implementations are frozen dataclasses whose fields are the options of the command line. Each file of ``rounding``
    holds one as ``METHOD``; the file's name is its name.
    """

    needs_hessian: ClassVar[bool]  # of the inputs; False: it needs no statistics at all

    def quantize(self, weights_OI: Tensor, grid: Grid, statistics: InputStatistics | None, name: str) -> QuantizedRows:
        """Return the quantised matrix. ``weights_OI`` is float32 and is not changed.

        ``name`` is the weight's name, for messages. Rows do not depend on one another: any subset of rows gives the same codes.
        Raises ``CheckpointError`` where the method fails, and never falls back to another one.
        """
        ...
