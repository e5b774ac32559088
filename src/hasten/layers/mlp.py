"""``Mlp``: the feed-forward layer, gated or plain."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.layers.spec import MlpSpec


class Mlp(nn.Module):
    """``up`` has rows [gate; up] when the layer is gated (Shazeer, 2020, arXiv 2002.05202)."""

    def __init__(self, spec: MlpSpec, hidden_size: int, layer_context: LayerContext) -> None:
        super().__init__()
        assert spec.gated or spec.activation != "silu", "a plain silu layer has no op"
        self.spec, self.ops = spec, layer_context.ops
        formats, size = layer_context.formats, spec.intermediate_size
        up_format = formats.projection(hidden_size, 2 * size if spec.gated else size)
        self.up = Linear(up_format, bias=spec.bias, layer_context=layer_context)
        self.down = Linear(formats.projection(size, hidden_size), bias=spec.bias, layer_context=layer_context)

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
