"""``Hqq``: half-quadratic quantisation, without calibration.

HQQ (Badri and Shaji, 2023) lowers the sum of abs(error)^p with p below 1, which forgives a few large errors. A step takes the large
part e of the errors, which the shrinkage operator leaves of w - s (q - z). Then it fits the zero z or the scale s to w - e by least
squares. Steps end after the first whose mean abs(error) is not below all before it. The ``hqq`` package ends those of all groups at
once; here each group has its own end, so that rows do not depend on one another.

The package moves zeros only, and stores them as real numbers. Formats that others load hold whole zeros: with these the numbers
of a grid are the same for every zero, except at its ends, and most of the gain is lost. So the scale moves, too:

1. Grids with offsets: the package's steps of the zero, then the nearest whole zero.
2. All grids: steps of the scale with a whole zero, then the nearest stored scale.

Each group keeps the best by the sum of abs(error)^p; rounding to nearest is one of the candidates.

Shape suffixes: O outputs · I inputs · N groups · S inputs of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from hasten.compress.quantize.grid import Grid, GroupScales, stored_scales
from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Range
from hasten.layers.formats.stored_matrix import GroupedRows

CHUNK_WEIGHTS = 2**19  # that are searched at a time

# Codes, targets w - e, scales and zeros of groups -> the next scales and zeros.
Fit = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Hqq:
    """Raises ``InvalidOption`` that lists every value out of range."""

    needs_hessian: ClassVar[bool] = False

    iterations: Annotated[int, Range(1, 10_000)] = 20  # steps at most
    p: Annotated[float, Range(0, 1, above=True)] = 0.7  # the error is the sum of abs(w - rounded)^p
    beta: Annotated[float, Range(0, above=True)] = 10.0  # of the shrinkage: larger takes less off an error

    def __post_init__(self) -> None:
        check_fields(self, "HQQ option", InvalidOption)

    def quantize(self, weights_OI: Tensor, grid: Grid, statistics: InputStatistics | None, name: str) -> GroupedRows:
        """See ``Rounding``."""
        start = grid.fit(weights_OI, statistics)
        scales_N1, zeros_N1 = start.scales_OG.reshape(-1, 1).clone(), start.zeros_OG.reshape(-1, 1).clone()
        chunk = max(1, CHUNK_WEIGHTS // start.group_size)
        groups = (torch.split(values, chunk) for values in (weights_OI.reshape(-1, start.group_size), scales_N1, zeros_N1))
        for weights, scales, zeros in zip(*groups, strict=True):
            self._improve(weights, scales, zeros, grid)
        shape = start.scales_OG.shape
        return grid.round(weights_OI, GroupScales(scales_N1.view(shape), zeros_N1.view(shape), start.group_size))

    def _improve(self, weights_NS: Tensor, scales_N1: Tensor, zeros_N1: Tensor, grid: Grid) -> None:
        """Replace scales and zeros of groups by better ones that the format can store."""
        if grid.spec.has_offsets:
            _, real_N1 = self.descend(weights_NS, scales_N1, zeros_N1, grid, fit_zeros)
            self._keep_better(weights_NS, scales_N1, zeros_N1, (scales_N1, real_N1.round().clamp_(0, grid.largest)), grid)
        real_N1, _ = self.descend(weights_NS, scales_N1, zeros_N1, grid, fit_scales)
        self._keep_better(weights_NS, scales_N1, zeros_N1, (stored_scales(real_N1, grid.scale_dtype), zeros_N1), grid)

    def _keep_better(
        self, weights_NS: Tensor, scales_N1: Tensor, zeros_N1: Tensor, candidate: tuple[Tensor, Tensor], grid: Grid
    ) -> None:
        def loss(scales_N1: Tensor, zeros_N1: Tensor) -> Tensor:
            codes_NS = grid.codes(weights_NS, scales_N1, zeros_N1)
            return codes_NS.sub_(zeros_N1).mul_(scales_N1).sub_(weights_NS).abs_().pow_(self.p).sum(-1, keepdim=True)

        is_better_N1 = loss(*candidate) < loss(scales_N1, zeros_N1)
        scales_N1.copy_(torch.where(is_better_N1, candidate[0], scales_N1))
        zeros_N1.copy_(torch.where(is_better_N1, candidate[1], zeros_N1))

    def descend(self, weights_NS: Tensor, scales_N1: Tensor, zeros_N1: Tensor, grid: Grid, fit: Fit) -> tuple[Tensor, Tensor]:
        """Return the scales and zeros after the steps, real numbers [N, 1]."""
        scales_N1, zeros_N1 = scales_N1.clone(), zeros_N1.clone()
        least_N = torch.full((len(weights_NS),), torch.inf, dtype=torch.float32, device="cpu")
        active = torch.arange(len(weights_NS), dtype=torch.int64, device="cpu")  # groups that have not stopped
        for _ in range(self.iterations):
            weights, scales, zeros = weights_NS[active], scales_N1[active], zeros_N1[active]
            # A zero is no whole number here: it is added before the rounding.
            codes = (weights / scales).add_(zeros).round_().clamp_(0, grid.largest)
            errors = weights - (codes - zeros).mul_(scales)
            scales_N1[active], zeros_N1[active] = fit(codes, weights - self._shrink(errors), scales, zeros)
            means = errors.abs_().mean(-1)
            is_less = means < least_N[active]
            active = active[is_less]
            least_N[active] = means[is_less]
            if not len(active):
                break
        return scales_N1, zeros_N1

    def _shrink(self, errors: Tensor) -> Tensor:
        """Return sign(x) · max(0, abs(x) - abs(x)^(p - 1) / beta)."""
        magnitudes = errors.abs()
        return magnitudes.sub_(magnitudes.pow(self.p - 1).div_(self.beta)).clamp_min_(0).mul_(errors.sign())


def fit_zeros(codes: Tensor, targets: Tensor, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Return the zeros that bring the codes closest to the targets, real numbers."""
    return scales, (codes - targets / scales).mean(-1, keepdim=True)


def fit_scales(codes: Tensor, targets: Tensor, scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales that bring the codes closest to the targets."""
    steps = codes - zeros
    squares = steps.square().sum(-1, keepdim=True)
    fitted = targets.mul(steps).sum(-1, keepdim=True) / squares
    return torch.where(squares > 0, fitted, scales), zeros


METHOD = Hqq
