"""Rules of clipping: ranges of groups that are smaller than those of the weights.

A smaller range has smaller steps, and rounds the few weights beyond its ends further.

Shape suffixes: O outputs · G groups of inputs · S inputs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.compress.quantize.grid import Clip, Grid
from hasten.compress.quantize.statistics import InputStatistics

CHUNK_WEIGHTS = 2**19  # that are searched at a time: 2 MiB in float32, and a few times that for what is computed of them

Ranges = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class MseClip:
    """The share of the range that rounds a group with the least squared error.

    Shares run from 1 to 0.2, as in the search of GPTQ's quantiser, in steps of 0.02.
    """

    needs_hessian: ClassVar[bool] = False

    SHARES: ClassVar[tuple[float, ...]] = tuple((50 - step) / 50 for step in range(41))

    def ranges(self, weights_OGS: Tensor, grid: Grid, statistics: InputStatistics | None) -> Ranges:
        """See ``Clip``."""
        return _in_chunks(weights_OGS, lambda chunk_OGS: self._search(chunk_OGS, grid))

    def _search(self, weights_OGS: Tensor, grid: Grid) -> Ranges:
        low_OG, high_OG = weights_OGS.amin(-1), weights_OGS.amax(-1)
        ranges = ((share * low_OG, share * high_OG) for share in self.SHARES)
        return _least_error(ranges, lambda *ends: rounding_error(weights_OGS, ends, grid).square_().sum(-1))


@dataclass(frozen=True, slots=True)
class PercentileClip:
    """The range between two percentiles of a group's weights.

    On symmetric grids it ends at a percentile of their magnitudes.
    """

    needs_hessian: ClassVar[bool] = False

    percentile: float  # above 50, up to 100

    def ranges(self, weights_OGS: Tensor, grid: Grid, statistics: InputStatistics | None) -> Ranges:
        """See ``Clip``. Percentiles between two weights are interpolated."""
        return _in_chunks(weights_OGS, lambda chunk_OGS: self._quantiles(chunk_OGS, grid))

    def _quantiles(self, weights_OGS: Tensor, grid: Grid) -> Ranges:
        share = self.percentile / 100
        if not grid.spec.has_offsets:
            high_OG = torch.quantile(weights_OGS.abs(), share, dim=-1)
            return -high_OG, high_OG
        return torch.quantile(weights_OGS, 1 - share, dim=-1), torch.quantile(weights_OGS, share, dim=-1)


@dataclass(frozen=True, slots=True)
class OutputClip:
    """The bound on a group's magnitudes whose rounding changes the group's output least.

    The output of the group's inputs alone is meant: its mean squared error is d H dᵀ, with the group's block H of the Hessian.
    Bounds are shares of the largest magnitude from 1 to 0.5, in steps of 0.05, as AWQ's search has them (Lin et al., 2024).
    """

    needs_hessian: ClassVar[bool] = True

    SHARES: ClassVar[tuple[float, ...]] = tuple((20 - step) / 20 for step in range(11))

    def ranges(self, weights_OGS: Tensor, grid: Grid, statistics: InputStatistics | None) -> Ranges:
        """See ``Clip``."""
        assert statistics is not None, "the clip search needs the Hessian of the inputs"
        _, num_groups, size = weights_OGS.shape
        hessian_GSGS = statistics.hessian_II.view(num_groups, size, num_groups, size)
        hessian_GSS = torch.stack([hessian_GSGS[group, :, group] for group in range(num_groups)])
        return _in_chunks(weights_OGS, lambda chunk_OGS: self._search(chunk_OGS, hessian_GSS, grid))

    def _search(self, weights_OGS: Tensor, hessian_GSS: Tensor, grid: Grid) -> Ranges:
        low_OG, high_OG = weights_OGS.amin(-1), weights_OGS.amax(-1)
        reach_OG = torch.maximum(-low_OG, high_OG)

        def error(*ends: Tensor) -> Tensor:
            errors_GOS = rounding_error(weights_OGS, ends, grid).transpose(0, 1)
            return torch.bmm(errors_GOS, hessian_GSS).mul_(errors_GOS).sum(-1).T

        bounds = (share * reach_OG for share in self.SHARES)
        return _least_error(((torch.maximum(low_OG, -bound), torch.minimum(high_OG, bound)) for bound in bounds), error)


def build_clip(name: str, percentile: float) -> Clip | None:
    """Return the rule of one of ``options.CLIPS``; None: ranges are those of the weights."""
    rules: dict[str, Clip | None] = {
        "none": None,
        "mse": MseClip(),
        "percentile": PercentileClip(percentile),
        "output": OutputClip(),
    }
    return rules[name]


def rounding_error(weights_OGS: Tensor, ends: Iterable[Tensor], grid: Grid) -> Tensor:
    """Return the weights minus the nearest numbers of the grids with these ranges."""
    low_OG, high_OG = ends
    fitted = grid.scales(low_OG, high_OG, weights_OGS.shape[-1])
    scales_OG1, zeros_OG1 = fitted.scales_OG[..., None], fitted.zeros_OG[..., None]
    rounded_OGS = grid.codes(weights_OGS, scales_OG1, zeros_OG1).sub_(zeros_OG1).mul_(scales_OG1)
    return torch.sub(weights_OGS, rounded_OGS, out=rounded_OGS)


def _in_chunks(weights_OGS: Tensor, ranges: Callable[[Tensor], Ranges]) -> Ranges:
    """Return the ranges of all rows, computed for a few at a time."""
    _, num_groups, size = weights_OGS.shape
    chunks = torch.split(weights_OGS, max(1, CHUNK_WEIGHTS // (num_groups * size)))
    lows, highs = zip(*map(ranges, chunks), strict=True)
    return torch.cat(lows), torch.cat(highs)


def _least_error(ranges: Iterable[Ranges], error: Callable[[Tensor, Tensor], Tensor]) -> Ranges:
    """Return each group's first range with the least ``error``, [O, G]."""
    candidates = iter(ranges)
    low_OG, high_OG = next(candidates)
    least_OG = error(low_OG, high_OG)
    for other_low_OG, other_high_OG in candidates:
        errors_OG = error(other_low_OG, other_high_OG)
        is_less_OG = errors_OG < least_OG
        low_OG, high_OG = torch.where(is_less_OG, other_low_OG, low_OG), torch.where(is_less_OG, other_high_OG, high_OG)
        least_OG = torch.where(is_less_OG, errors_OG, least_OG)
    return low_OG, high_OG
