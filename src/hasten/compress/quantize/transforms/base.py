"""``Transform``: a method that rescales the inputs of matrices and keeps the model's function.

A matrix reads x / s with columns multiplied by s; the layer before it produces x / s. The outputs are the same in exact arithmetic.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.quantize.transforms.scaled_input import ScaledInput


class Transform(Protocol):
    """One method.

    Implementations are frozen dataclasses whose fields are the options of the command line. Each file of ``transforms``
    holds one as ``METHOD``; the file's name is its name.
    """

    needs_hessian: ClassVar[bool]

    def scales(self, scaled_input: ScaledInput, weights_OI: Tensor, statistics: InputStatistics, grid: Grid | None) -> Tensor:
        """Return the factor of each input, [I] float32, positive: ones leave the input as it is.

        ``grid`` is the one that the weights will be rounded on; None for floating-point grids. Inputs that the producer scales
        together (``ScaledInput.tie``) have one factor.
        """
        ...
