"""``Dense``: the matrix as it is, in float32, bfloat16 or float16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hasten.ops.base import Ops


class Dense(nn.Module):
    """One parameter, ``weight`` [O, I]. Allocated, not initialised, unless one is given to be shared (tied embeddings)."""

    name = "dense"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        shared: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.ops = in_features, out_features, ops
        self.weight = (
            shared
            if shared is not None
            else nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device=device), requires_grad=False)
        )
        assert self.weight.shape == (out_features, in_features), (self.weight.shape, out_features, in_features)

    def load(self, part: str, source: Tensor, rows: slice, *, transposed: bool) -> None:
        with torch.no_grad():
            self.get_parameter(part)[rows].copy_(source.T if transposed else source)

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self.ops.linear(x_TI, self.weight, bias_O)
