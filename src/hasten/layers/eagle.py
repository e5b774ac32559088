"""``EagleHead``: one layer that drafts token after token from the target's hidden states.

EAGLE-3 (Li et al., 2025, arXiv 2503.01840) in the layout of the ``speculators`` project. To draft the token at t + 2 it reads a
hidden state h, and the embedding e of the known token at t + 1::

    e ── attention_norm ─┐                                             first draft token:  h = fc(three aux hidden states at t)
                         ├─ attention ─+─┬─ mlp_norm ─ mlp ─+─ out ─ norm ─ lm_head
    h ─┬── hidden_norm ──┘             │ └──────────────────┘          later draft tokens: h = out of the token before
       └───────────────────────────────┘

It knows neither the target nor the verification.

Shape suffixes: T tokens of the step · A aux hidden states · E hidden size · D draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.layers.attention import Attention, AttentionContext
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Embedding, Linear
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.layers.spec import LayerSpec, NormSpec

LAYER_INDEX = 0  # the index of the only layer, by which contexts find its keys and values


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleSpec:
    hidden_size: int
    target_size: int  # hidden size of the target
    target_vocab_size: int
    draft_vocab_size: int
    # The aux hidden states are the target's after this many layers: 1 is the first layer's output.
    aux_layers: tuple[int, ...]
    layer: LayerSpec
    norm: NormSpec
    norm_before_residual: bool = False  # the residual is the normalised hidden state, not the hidden state itself

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """The target's layers, from 0, whose outputs ``fc`` reads, in its order."""
        return tuple(layer - 1 for layer in self.aux_layers)


class EagleLayer(nn.Module):
    """A decoder layer that reads an embedding and a hidden state; its residual is the hidden state."""

    def __init__(self, spec: EagleSpec, layer_context: LayerContext) -> None:
        super().__init__()
        self.norm_before_residual, size = spec.norm_before_residual, spec.hidden_size
        self.attention_norm = Norm(spec.norm, size, layer_context)  # of the embedding
        self.hidden_norm = Norm(spec.norm, size, layer_context)
        self.attention = Attention(spec.layer.attention, size, layer_context, in_features=2 * size)
        self.mlp_norm = Norm(spec.norm, size, layer_context)
        self.mlp = Mlp(spec.layer.mlp, size, layer_context)

    def forward(self, hidden_TE: Tensor, embedded_TE: Tensor, context: AttentionContext) -> Tensor:
        normed_TE = self.hidden_norm(hidden_TE)
        attention_input = torch.cat((self.attention_norm(embedded_TE), normed_TE), dim=-1)  # [T, 2E]
        residual_TE = normed_TE if self.norm_before_residual else hidden_TE
        residual_TE = residual_TE + self.attention(attention_input, LAYER_INDEX, context)
        out_TE: Tensor = residual_TE + self.mlp(self.mlp_norm(residual_TE))
        return out_TE


class EagleHead(nn.Module):
    """The EAGLE-3 draft head of a target.

    ``fuse`` makes the first hidden state from aux hidden states; ``run`` and ``head`` then draft token after token. Each later
    draft token reads what ``run`` returned for the one before. ``embedding`` may be the target's own. ``target_ids[d]`` is the
    target's id of draft token d. Parameters are allocated but not initialised.
    """

    target_ids: Tensor

    def __init__(self, spec: EagleSpec, embedding: Embedding, layer_context: LayerContext) -> None:
        super().__init__()
        self.spec, self.ops, self.dtype, size = spec, layer_context.ops, layer_context.dtype, spec.hidden_size
        formats, rotary = layer_context.formats, spec.layer.attention.rotary
        self.embedding = embedding
        fused_size = spec.target_size * len(spec.aux_layers)
        self.fc = Linear(formats.projection(fused_size, size), bias=False, layer_context=layer_context)
        self.layer = EagleLayer(spec, layer_context)
        self.norm = Norm(spec.norm, size, layer_context)
        self.lm_head = Linear(formats.lm_head(size, spec.draft_vocab_size), bias=False, layer_context=layer_context)
        self.rotary = RotaryTables([] if rotary is None else [rotary], layer_context.device)
        target_ids = torch.arange(spec.draft_vocab_size, dtype=torch.int64, device="cpu")
        self.register_buffer("target_ids", target_ids.to(layer_context.device))

    def fuse(self, states_TAE: Tensor) -> Tensor:
        """Return the first hidden state [T, E] from concatenated aux hidden states [T, A·E].

        They are in the order of ``spec.aux_layer_indices``.
        """
        hidden_TE: Tensor = self.fc(states_TAE.to(self.dtype))
        return hidden_TE

    def run(self, hidden_TE: Tensor, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """Return the hidden state that ``head`` reads, and that ``run`` reads for the next draft token. [T, E]

        ``ids_T[i]`` is the token after the one at ``positions_T[i]``, to which ``hidden_TE[i]`` belongs. ``context`` must have been
        made for these positions.
        """
        assert len(hidden_TE) == len(ids_T) == len(positions_T), (len(hidden_TE), len(ids_T), len(positions_T))
        out_TE: Tensor = self.layer(hidden_TE, self.embedding(ids_T).to(self.dtype), context)
        return out_TE

    def head(self, hidden_TE: Tensor) -> Tensor:
        """Apply the final norm and ``lm_head``: logits over the draft vocabulary [T, D], float32."""
        logits_TD: Tensor = self.lm_head(self.norm(hidden_TE))
        return logits_TD.float()
