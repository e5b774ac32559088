"""``Attention``: projections around whatever the context computes between them."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.attention_context import AttentionContext, FillContext
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.layers.norm import Norm
from hasten.layers.spec import AttentionSpec


class Attention(nn.Module):
    """``qkv`` is one projection with rows [q; k; v]; ``q_norm`` and ``k_norm`` act on single heads.

    ``in_features`` is the width of its input, where that is not the hidden state alone.
    """

    def __init__(self, spec: AttentionSpec, hidden_size: int, layer_context: LayerContext, in_features: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = Linear(
            layer_context.formats.projection(in_features or hidden_size, spec.qkv_size),
            bias=spec.qkv_bias,
            layer_context=layer_context,
        )
        self.out = Linear(
            layer_context.formats.projection(spec.q_size, hidden_size), bias=spec.out_bias, layer_context=layer_context
        )
        norm = spec.qk_norm
        self.q_norm = None if norm is None else Norm(norm, spec.head_dim, layer_context)
        self.k_norm = None if norm is None else Norm(norm, spec.head_dim, layer_context)

    def forward(self, x_TE: Tensor, layer: int, context: AttentionContext) -> Tensor:
        attended = context.attend(layer, self.qkv(x_TE), self.spec, self.q_norm, self.k_norm)  # [T, H·D]
        out_TE: Tensor = self.out(attended)
        return out_TE

    def fill(self, x_TE: Tensor, layer: int, context: FillContext) -> None:
        context.fill(layer, self.qkv(x_TE), self.spec, self.q_norm, self.k_norm)
