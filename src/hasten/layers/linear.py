"""``Linear``: a weight matrix in some format, and a bias."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.build import Build
from hasten.layers.formats.base import WeightFormat


class Linear(nn.Module):
    """x Wᵀ + b. ``format`` holds the matrix and may be replaced as a whole (quantisation)."""

    format: WeightFormat

    def __init__(self, weight_format: WeightFormat, *, bias: bool, build: Build) -> None:
        super().__init__()
        self.format = weight_format
        self.bias = build.vector(weight_format.out_features) if bias else None

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.format.multiply(x_TI, self.bias)
