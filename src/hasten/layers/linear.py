"""``Linear``: a weight matrix in some format, and a bias."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.formats.base import WeightFormat
from hasten.layers.layer_context import LayerContext

ROWS_AT_A_TIME = 4096  # that are unpacked at a time: they are float32


class Linear(nn.Module):
    """x Wᵀ + b. ``format`` holds the matrix and may be replaced as a whole (quantisation)."""

    format: WeightFormat

    def __init__(self, weight_format: WeightFormat, *, bias: bool, layer_context: LayerContext) -> None:
        super().__init__()
        self.format = weight_format
        self.bias = layer_context.vector(weight_format.out_features) if bias else None

    def slice_rows(self, ids_R: Tensor, layer_context: LayerContext) -> Linear:
        """The outputs ``ids_R`` of this matrix as one of their own: a vocabulary of fewer tokens. Values are those of this one."""
        part = Linear(
            layer_context.formats.lm_head(self.format.in_features, len(ids_R)),
            bias=self.bias is not None,
            layer_context=layer_context,
        )
        for first in range(0, len(ids_R), ROWS_AT_A_TIME):
            some_R = ids_R[first : first + ROWS_AT_A_TIME]
            rows = slice(first, first + len(some_R))
            part.format.load("weight", self.format.lookup(some_R), rows, transposed=False)
        if part.bias is not None and self.bias is not None:
            part.bias.copy_(self.bias[ids_R])
        return part

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.format.multiply(x_TI, self.bias)
