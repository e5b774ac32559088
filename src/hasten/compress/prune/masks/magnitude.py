"""``Magnitude``: the smallest weights of each row become zero (Han et al., 2015, arXiv 1506.02626).

Rows are compared by themselves, as Wanda does, and not with the whole matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hasten.compress.prune.masks.pattern import Pattern
from hasten.compress.quantize.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class Magnitude:
    needs_statistics: ClassVar[bool] = False
    needs_hessian: ClassVar[bool] = False

    def prune(self, weights_OI: Tensor, pattern: Pattern, statistics: InputStatistics | None, name: str) -> Tensor:
        """See ``MaskMethod``."""
        return weights_OI.masked_fill(pattern.rows(weights_OI.abs()), 0)


METHOD = Magnitude
