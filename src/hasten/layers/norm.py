"""``Norm``: root-mean-square or layer normalisation over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hasten.layers.spec import NormSpec
from hasten.ops.base import Ops


class Norm(nn.Module):
    """``bias`` is None for the root-mean-square kind. Parameters are allocated, not initialised."""

    def __init__(self, spec: NormSpec, size: int, ops: Ops, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.spec, self.ops = spec, ops
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False) if spec.kind == "layer" else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.kind == "rms":
            return self.ops.rms_norm(x, self.weight, self.spec.eps)
        return self.ops.layer_norm(x, self.weight, self.bias, self.spec.eps)
