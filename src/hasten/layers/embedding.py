"""``Embedding``: one learned row per token or per position."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.formats.base import WeightFormat


class Embedding(nn.Module):
    """Rows of a matrix. The format may be shared with the vocabulary projection (tied embeddings)."""

    format: WeightFormat

    def __init__(self, weight_format: WeightFormat) -> None:
        super().__init__()
        self.format = weight_format

    def forward(self, ids_T: Tensor) -> Tensor:
        return self.format.lookup(ids_T)
