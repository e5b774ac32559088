"""``Awq``: activation-aware weight quantisation (Lin et al., 2023, arXiv 2306.00978).

Inputs with large magnitudes get large factors, so that their weights lose less by rounding. The factors are a power of the inputs'
mean magnitude; a grid search finds the exponent.

Shape suffixes: O outputs · I inputs · G groups of inputs · S inputs of a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.statistics import InputStatistics
from hasten.compress.quantize.transforms.scaled_input import ScaledInput
from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Range

WEIGHT_FLOOR = 1e-4  # as in the authors' code: it bounds the factor of an input whose weights are all near 0
MAX_RATIO = 1e4  # of the largest to the smallest factor, which then lie within [0.01, 100]


@dataclass(frozen=True, slots=True)
class Awq:
    """Factors s = x^r / (w^(1 - r) + 1e-4), with the exponent r that rounds best.

    x is the mean magnitude of an input, and w that of its weights, relative to their groups. The exponent minimises the squared
    error of the matrix's outputs. Factors of 1 are among the candidates.
    """

    needs_hessian: ClassVar[bool] = True

    grid_size: Annotated[int, Range(1, 1000)] = 20  # exponents that are tried: 0, 1/n, ... (n - 1)/n
    duo_scaling: bool = True  # False: factors are x^r, as in the paper

    def __post_init__(self) -> None:
        check_fields(self, "AWQ option", InvalidOption)

    def scales(self, scaled_input: ScaledInput, weights_OI: Tensor, statistics: InputStatistics, grid: Grid | None) -> Tensor:
        """See ``Transform``.

        Returns ones for floating-point grids, whose relative precision hardly depends on factors. The search ignores the grid's
        rule of clipping, as the authors' code does. On the demo model, a clip search inside takes five times as long and lowers
        the final error by another 1 %.
        """
        best_I = torch.ones_like(statistics.absmax_I)
        if grid is None:
            return best_I
        grid, hessian_II = dataclasses.replace(grid, clip=None), statistics.hessian_II
        least = output_error(weights_OI, best_I, hessian_II, grid)
        for scales_I in self._candidates(scaled_input, weights_OI, statistics, grid):
            error = output_error(weights_OI, scales_I, hessian_II, grid)
            if error < least:
                least, best_I = error, scales_I
        return best_I

    def _candidates(
        self, scaled_input: ScaledInput, weights_OI: Tensor, statistics: InputStatistics, grid: Grid
    ) -> Iterator[Tensor]:
        """Yield the tied factors of each exponent."""
        inputs_I = statistics.mean_abs_I
        weights_I = relative_magnitude(weights_OI, grid.group_size(weights_OI.shape[1]))
        for step in range(self.grid_size):
            exponent = step / self.grid_size
            scales_I = inputs_I.pow(exponent)
            if self.duo_scaling:
                scales_I = scales_I / (weights_I.pow(1 - exponent) + WEIGHT_FLOOR)
            high = scales_I.max()
            if not 0 < high < torch.inf:  # no input is ever other than 0
                return
            scales_I = scaled_input.tie(scales_I.clamp_min(high / MAX_RATIO))
            yield scales_I / (scales_I.max() * scales_I.min()).sqrt()


def relative_magnitude(weights_OI: Tensor, group_size: int) -> Tensor:
    """Return the mean over the outputs of |weight| / largest |weight| of its group, [I]."""
    magnitudes_OGS = weights_OI.abs().reshape(len(weights_OI), -1, group_size)
    largest_OG = magnitudes_OGS.amax(-1).clamp_min(torch.finfo(weights_OI.dtype).tiny)
    return (magnitudes_OGS / largest_OG[..., None]).mean(0).flatten()


def output_error(weights_OI: Tensor, scales_I: Tensor, hessian_II: Tensor, grid: Grid) -> float:
    """Return the mean squared error of the outputs after rounding of the scaled weights, per token.

    That is tr(D H Dᵀ) with H = ``hessian_II``, the mean of x xᵀ before scaling, and D = Q(W s) / s - W.
    """
    scaled_OI = weights_OI * scales_I
    error_OI = grid.round(scaled_OI, grid.fit(scaled_OI)).dequantize().div_(scales_I).sub_(weights_OI)
    return float(torch.dot((error_OI @ hessian_II).flatten(), error_OI.flatten()))


METHOD = Awq
