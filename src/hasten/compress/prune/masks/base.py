"""``MaskMethod``: from a matrix to the same matrix with weights of zero."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from hasten.compress.prune.masks.pattern import Pattern
from hasten.compress.quantize.statistics import InputStatistics


class MaskMethod(Protocol):
    needs_statistics: ClassVar[bool]  # of the matrix's inputs, and so a calibration text
    needs_hessian: ClassVar[bool]  # ``InputStatistics.square_sum_II``

    def prune(self, weights_OI: Tensor, pattern: Pattern, statistics: InputStatistics | None, name: str) -> Tensor:
        """Return the pruned weights, float32 [O, I]. ``weights_OI`` is not changed.

        ``statistics`` are None only if the method needs none. ``name`` is the weight's. Raises ``CheckpointError``.
        """
        ...
