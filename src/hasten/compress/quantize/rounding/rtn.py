"""``Rtn``: round to nearest, without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.layers.formats.stored_matrix import QuantizedRows


@dataclass(frozen=True, slots=True)
class Rtn:
    needs_hessian: ClassVar[bool] = False

    def quantize(self, weights_OI: Tensor, grid: Grid, statistics: InputStatistics | None, name: str) -> QuantizedRows:
        """See ``Rounding``."""
        return grid.round(weights_OI, grid.fit(weights_OI, statistics))


METHOD = Rtn
