"""``Grid``: the numbers that an integer ``QuantSpec`` can hold, and rounding to nearest on them.

A weight is scale * (code - zero), as ``GroupedRows`` says. Symmetric grids have scale = absmax / (largest / 2) and the zero in the
middle; asymmetric ones have scale = (max - min) / largest, with 0 inside the range, and a whole zero. ``largest`` is 2^bits - 1.

Shape suffixes: O outputs · I inputs · G groups of inputs · S inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.errors import CheckpointError
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows


@dataclass(frozen=True, slots=True)
class GroupScales:
    """The fitted scale and zero of each group of a matrix."""

    scales_OG: Tensor  # float32; numbers that the stored dtype holds
    zeros_OG: Tensor  # float32, whole numbers: the code of weight 0
    group_size: int


class Clip(Protocol):
    """How the range of a group is chosen. Implementations are in ``clip.py``."""

    needs_hessian: ClassVar[bool]  # of the inputs

    def ranges(self, weights_OGS: Tensor, grid: Grid, statistics: InputStatistics | None) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest weight of each group's range, both [O, G].

        Weights outside are rounded to the ends. 0 may lie outside the returned range; ``Grid`` then extends it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Grid:
    spec: QuantSpec  # kind "int", granularity "channel" or "group" with a size that divides the inputs
    scale_dtype: torch.dtype  # in which a format stores the scales: they are rounded to it before the codes
    clip: Clip | None = None  # None: the range is that of the weights

    @property
    def largest(self) -> int:
        return (1 << self.spec.bits) - 1

    def group_size(self, in_features: int) -> int:
        """Return the inputs that share a scale."""
        size = self.spec.group_size or in_features
        assert in_features % size == 0, (in_features, size)
        return size

    def fit(self, weights_OI: Tensor, statistics: InputStatistics | None = None) -> GroupScales:
        """Return the scales for ``weights_OI``. ``statistics`` are those that the rule of clipping needs.

        Raises ``CheckpointError`` for weights that are NaN, infinite or too large for the dtype of the scales.
        """
        size = self.group_size(weights_OI.shape[1])
        weights_OGS = weights_OI.reshape(len(weights_OI), -1, size)
        low_OG, high_OG = weights_OGS.amin(-1), weights_OGS.amax(-1)
        # A rule of clipping could hide an infinite weight; ``scales`` refuses it.
        if self.clip is not None and bool((high_OG - low_OG).isfinite().all()):
            low_OG, high_OG = self.clip.ranges(weights_OGS, self, statistics)
        return self.scales(low_OG, high_OG, size)

    def scales(self, low_OG: Tensor, high_OG: Tensor, group_size: int) -> GroupScales:
        """Return the scales of groups with these ranges."""
        low_OG, high_OG = low_OG.clamp_max(0), high_OG.clamp_min(0)
        symmetric = not self.spec.has_offsets
        reach_OG = 2 * torch.maximum(-low_OG, high_OG) if symmetric else high_OG - low_OG
        scales_OG = stored_scales(reach_OG / self.largest, self.scale_dtype)
        if symmetric:
            return GroupScales(scales_OG, torch.full_like(scales_OG, (self.largest + 1) // 2), group_size)
        return GroupScales(scales_OG, (-low_OG / scales_OG).round_().clamp_(0, self.largest), group_size)

    def codes(self, weights: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """Return the codes of the nearest numbers, whole numbers in float32. The shapes broadcast."""
        return (weights / scales).round_().add_(zeros).clamp_(0, self.largest)

    def round(self, weights_OI: Tensor, scales: GroupScales) -> GroupedRows:
        """Return the nearest numbers of the grid."""
        weights_OGS = weights_OI.reshape(len(weights_OI), -1, scales.group_size)
        codes_OGS = self.codes(weights_OGS, scales.scales_OG[..., None], scales.zeros_OG[..., None])
        return self.rows(codes_OGS.reshape(weights_OI.shape), scales)

    def rows(self, codes_OI: Tensor, scales: GroupScales) -> GroupedRows:
        """Return the matrix with these codes, whole numbers of any dtype."""
        zero = self.spec.zero
        zeros = scales.zeros_OG if zero is None else zero
        return GroupedRows(codes_OI.to(torch.uint8), scales.scales_OG, scales.group_size, zeros)


def stored_scales(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the nearest positive scales that ``dtype`` holds, float32.

    Raises ``CheckpointError`` for scales that are NaN, infinite or too large.
    """
    rounded = scales.to(dtype).float()
    if not bool(rounded.isfinite().all()):
        raise CheckpointError(
            f"weights are too large for scales in {str(dtype).removeprefix('torch.')}, or not finite",
            got=f"a scale of {float(scales.max()):.3g}",
            remedy="Use the format compressed-tensors with a float32 or bfloat16 model, or mend the checkpoint",
        )
    # A group of zeros, or of numbers that vanish beside the smallest scale, keeps any scale: its codes are the zero.
    return torch.where(rounded == 0, torch.finfo(dtype).tiny, rounded)
