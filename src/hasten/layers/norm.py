"""``Norm``: root-mean-square or layer normalisation over the last dimension."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.layer_context import LayerContext
from hasten.layers.spec import NormSpec


class Norm(nn.Module):
    """RMSNorm has no bias. Parameters are allocated but not initialised."""

    def __init__(self, spec: NormSpec, size: int, layer_context: LayerContext) -> None:
        super().__init__()
        self.spec, self.ops = spec, layer_context.ops
        self.weight = layer_context.vector(size)
        self.bias = layer_context.vector(size) if spec.kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.kind == "rms":
            return self.ops.rms_norm(x, self.weight, self.spec.eps)
        return self.ops.layer_norm(x, self.weight, self.bias, self.spec.eps)
