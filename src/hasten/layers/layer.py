"""``Layer``: attention and feed-forward, each behind a norm and beside a residual."""

from __future__ import annotations

from torch import Tensor, nn

from hasten.layers.attention import Attention
from hasten.layers.attention_context import AttentionContext, FillContext
from hasten.layers.layer_context import LayerContext
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.layers.spec import LayerSpec, NormSpec


class Layer(nn.Module):
    """::

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
        """``index`` is the layer's place in the decoder, by which the context finds its keys and values."""
        x_TE = x_TE + self.attention(self.attention_norm(x_TE), index, context)
        out_TE: Tensor = x_TE + self.mlp(self.mlp_norm(x_TE))
        return out_TE

    def fill(self, x_TE: Tensor, index: int, context: FillContext) -> None:
        """Leaves the keys and values that ``forward`` would leave, and computes nothing else."""
        self.attention.fill(self.attention_norm(x_TE), index, context)
