"""``DecoderLayer``: attention and feed-forward, each with a norm before it and a residual around both."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.attention import Attention, AttentionContext, FillKvContext
from hasten.layers.layer_context import LayerContext
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.layers.spec import LayerSpec, NormSpec


class DecoderLayer(nn.Module):
    """A pre-norm transformer layer::

    x ─┬─ attention_norm ─ attention ─+─┬─ mlp_norm ─ mlp ─+─ out
       └──────────────────────────────┘ └──────────────────┘
    """

    def __init__(self, spec: LayerSpec, norm: NormSpec, hidden_size: int, layer_context: LayerContext) -> None:
        super().__init__()
        self.attention_norm = Norm(norm, hidden_size, layer_context)
        self.attention = Attention(spec.attention, hidden_size, layer_context)
        self.mlp_norm = Norm(norm, hidden_size, layer_context)
        self.mlp = Mlp(spec.mlp, hidden_size, layer_context)

    def forward(self, x_TE: Tensor, index: int, context: AttentionContext) -> Tensor:
        """Return the layer's output [T, E]. The context finds its keys and values by ``index``."""
        x_TE = x_TE + self.attention(self.attention_norm(x_TE), index, context)
        out_TE: Tensor = x_TE + self.mlp(self.mlp_norm(x_TE))
        return out_TE

    def fill_kv(self, x_TE: Tensor, index: int, context: FillKvContext) -> None:
        """Store the keys and values that ``forward`` would store, and compute nothing else."""
        self.attention.fill_kv(self.attention_norm(x_TE), index, context)
