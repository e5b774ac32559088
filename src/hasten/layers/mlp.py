"""``Mlp``: the feed-forward layer, gated or plain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hasten.layers.linear import Linear
from hasten.layers.spec import MlpSpec
from hasten.ops.base import Ops


class Mlp(nn.Module):
    """``up`` has rows [gate; up] when the layer is gated (Shazeer, 2020, arXiv 2002.05202)."""

    def __init__(
        self, spec: MlpSpec, hidden_size: int, *, ops: Ops, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        assert spec.gated or spec.activation != "silu", "a plain silu layer has no op"
        self.spec, self.ops = spec, ops
        up_size = spec.intermediate_size * (2 if spec.gated else 1)
        self.up = Linear(hidden_size, up_size, bias=spec.bias, ops=ops, dtype=dtype, device=device)
        self.down = Linear(spec.intermediate_size, hidden_size, bias=spec.bias, ops=ops, dtype=dtype, device=device)

    def forward(self, x_TE: Tensor) -> Tensor:
        out_TE: Tensor = self.down(self._activate(self.up(x_TE)))
        return out_TE

    def _activate(self, up: Tensor) -> Tensor:
        if self.spec.activation == "silu":
            return self.ops.silu_mul(up)
        tanh = self.spec.activation == "gelu_tanh"
        if not self.spec.gated:
            return self.ops.gelu(up, tanh=tanh)
        gate_TF, up_TF = up.chunk(2, dim=-1)
        return self.ops.gelu(gate_TF, tanh=tanh) * up_TF
