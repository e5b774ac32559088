"""``Fp8``: round to nearest in FP8 e4m3, without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from hasten.compress.quantize.grid import Grid, stored_scales
from hasten.compress.quantize.statistics import InputStatistics
from hasten.layers.formats.stored_matrix import Fp8Rows

LARGEST = 448.0  # of e4m3


@dataclass(frozen=True, slots=True)
class Fp8:
    """The scale of a tensor, an output or a block is its largest magnitude / 448."""

    needs_hessian: ClassVar[bool] = False

    def quantize(self, weights_OI: Tensor, grid: Grid, statistics: InputStatistics | None, name: str) -> Fp8Rows:
        """See ``Rounding``.

        Outputs of a tensor or of a block share scales, so they are rounded together.
        """
        num_outputs, num_inputs = weights_OI.shape
        sizes = {"tensor": (num_outputs, num_inputs), "channel": (1, num_inputs), "block": grid.spec.block}
        height, width = sizes[grid.spec.granularity] or (num_outputs, num_inputs)
        width = min(width, num_inputs)
        padded = pad(weights_OI.abs(), (0, -num_inputs % width, 0, -num_outputs % height))
        blocks = padded.view(len(padded) // height, height, -1, width)
        scales = stored_scales(blocks.amax((1, 3)) / LARGEST, grid.scale_dtype)
        scales_OC = scales.repeat_interleave(height, dim=0)[:num_outputs]
        scales_OI = scales_OC.repeat_interleave(width, dim=1)[:, :num_inputs]
        # A scale that was rounded down takes the largest weights beyond 448; some casts of torch give NaN there.
        values_OI = (weights_OI / scales_OI).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return Fp8Rows(values_OI, scales_OC, width)


METHOD = Fp8
