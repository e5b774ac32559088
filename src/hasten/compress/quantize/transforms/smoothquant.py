"""``SmoothQuant``: moves outliers of activations into the weights.

Xiao et al., 2022, arXiv 2211.10438. For products whose input is quantised with one scale for all channels: an outlier channel
costs the other channels their precision.

Shape suffixes: O outputs · I inputs.
"""

from __future__ import annotations

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

MAX_RATIO = 1e5  # of the largest to the smallest magnitude that factors distinguish


@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """Factors s = max|x|^alpha / max|w|^(1 - alpha), for matrices after norms.

    Both maxima are those of one input, over the tokens and over the outputs.
    """

    needs_hessian: ClassVar[bool] = False

    # 1: all of the outliers' magnitude moves into the weights. The paper has 0.5, and up to 0.9 for models with larger outliers.
    alpha: Annotated[float, Range(0, 1)] = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "SmoothQuant option", InvalidOption)

    def scales(self, scaled_input: ScaledInput, weights_OI: Tensor, statistics: InputStatistics, grid: Grid | None) -> Tensor:
        """See ``Transform``. Inputs that no norm produces keep factors of 1, as in the paper."""
        inputs_I, columns_I = statistics.absmax_I, weights_OI.abs().amax(0)
        if not scaled_input.is_after_norm or not inputs_I.any() or not columns_I.any():
            return torch.ones_like(inputs_I)
        scales_I = _bounded(inputs_I).pow(self.alpha) / _bounded(columns_I).pow(1 - self.alpha)
        return scaled_input.tie(scales_I)


def _bounded(magnitudes_I: Tensor) -> Tensor:
    """Return the magnitudes without zeros.

    A channel that calibration never saw then has a finite factor, and keeps its weights.
    """
    return magnitudes_I.clamp_min(magnitudes_I.max() / MAX_RATIO)


METHOD = SmoothQuant
