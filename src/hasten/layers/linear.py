"""``Linear``: a weight matrix in some format, and a bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hasten.layers.formats.base import WeightFormat
from hasten.layers.formats.dense import Dense
from hasten.ops.base import Ops


class Linear(nn.Module):
    """x Wᵀ + b. ``format`` holds the matrix and may be replaced as a whole (quantisation)."""

    format: WeightFormat

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        shared: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.format = Dense(in_features, out_features, ops, dtype, device, shared)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device), requires_grad=False) if bias else None

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.format.multiply(x_TI, self.bias)
