"""``Wanda``: weights times the norms of their inputs, compared in each row.

The method is that of Sun et al., 2023, arXiv 2306.11695.

Shape suffixes: O outputs · I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hasten.compress.prune.masks.pattern import Pattern
from hasten.compress.quantize.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class Wanda:
    needs_statistics: ClassVar[bool] = True
    needs_hessian: ClassVar[bool] = False

    def prune(self, weights_OI: Tensor, pattern: Pattern, statistics: InputStatistics | None, name: str) -> Tensor:
        """See ``MaskMethod``. The score of a weight is |w| · ‖x‖₂, x its input over all calibration tokens."""
        assert statistics is not None, "Wanda needs the norms of the inputs"
        norms_I = statistics.norms_I
        return weights_OI.masked_fill(pattern.rows(weights_OI.abs() * norms_I), 0)


METHOD = Wanda
