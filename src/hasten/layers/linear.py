"""``Linear`` and ``Embedding``: a weight matrix in some format, multiplied or looked up."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.formats.base import WeightFormat
from hasten.layers.layer_context import LayerContext

SLICE_CHUNK = 4096  # rows that ``slice_rows`` holds unpacked, in float32, at a time


class Embedding(nn.Module):
    """One learned row per token or per position. With tied embeddings, ``lm_head`` shares the format."""

    format: WeightFormat

    def __init__(self, weight_format: WeightFormat) -> None:
        super().__init__()
        self.format = weight_format

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.format.lookup(ids_T)


class Linear(nn.Module):
    """x Wᵀ + b. ``format`` holds the matrix W."""

    format: WeightFormat

    def __init__(self, weight_format: WeightFormat, *, bias: bool, layer_context: LayerContext) -> None:
        super().__init__()
        self.format = weight_format
        self.bias = layer_context.vector(weight_format.out_features) if bias else None

    def slice_rows(self, ids_R: Tensor, layer_context: LayerContext) -> Linear:
        """Return the output rows ``ids_R`` as a new ``Linear``, such as an ``lm_head`` of fewer tokens."""
        sliced_format = layer_context.formats.lm_head(self.format.in_features, len(ids_R))
        sliced = Linear(sliced_format, bias=self.bias is not None, layer_context=layer_context)
        for start in range(0, len(ids_R), SLICE_CHUNK):
            chunk_R = ids_R[start : start + SLICE_CHUNK]
            rows = slice(start, start + len(chunk_R))
            sliced_format.load("weight", self.format.lookup(chunk_R), rows, transposed=False)
        if sliced.bias is not None and self.bias is not None:
            sliced.bias.copy_(self.bias[ids_R])
        return sliced

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.format.multiply(x_TI, self.bias)
