"""``EagleHead``: one layer that guesses several tokens, one after the other, from the target's own hidden states.

Li et al., 2025, EAGLE-3, arXiv 2503.01840, as the ``speculators`` project lays it out. The guess of the token at t + 2 reads e, the
embedding of the token at t + 1, which is known by then, and h::

    e ── attention_norm ─┐                                                   h of the first guess:  fc(states of three layers at t)
                         ├─ attention ─+─┬─ mlp_norm ─ mlp ─+─ out ─ norm ─ vocabulary
    h ─┬── hidden_norm ──┘             │ └──────────────────┘                h of a later guess:  out of the guess before
       └───────────────────────────────┘

It knows neither the target nor how its guesses are verified.

Shape suffixes: T tokens of the step · A states that are fused · E hidden size · D draft vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.layers.attention import Attention
from hasten.layers.attention_context import AttentionContext
from hasten.layers.embedding import Embedding
from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.layers.mlp import Mlp
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.layers.spec import LayerSpec, NormSpec

LAYER = 0  # the only one: by this number contexts find its keys and values


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleSpec:
    hidden_size: int
    target_size: int  # hidden size of the target
    target_vocab_size: int
    draft_vocab_size: int  # tokens that can be guessed
    # Each fused state is the target's after this many of its layers: 1 is the first layer's output.
    aux_layers: tuple[int, ...]
    layer: LayerSpec
    norm: NormSpec
    norm_before_residual: bool = False  # the residual is the normalised hidden state, not the hidden state itself

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        """The target's layers, from 0, whose outputs are fused, in the order of fusion."""
        return tuple(count - 1 for count in self.aux_layers)

    @property
    def fused_size(self) -> int:
        """Width of the states side by side."""
        return self.target_size * len(self.aux_layers)


class EagleLayer(nn.Module):
    """A decoder layer whose attention reads two vectors per token, and whose residual is the second of them."""

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
        both = torch.cat((self.attention_norm(embedded_TE), normed_TE), dim=-1)  # [T, 2E]
        residual_TE = normed_TE if self.norm_before_residual else hidden_TE
        residual_TE = residual_TE + self.attention(both, LAYER, context)
        out_TE: Tensor = residual_TE + self.mlp(self.mlp_norm(residual_TE))
        return out_TE


class EagleHead(nn.Module):
    """``fuse`` for positions whose states the target has computed, ``run`` and ``head`` for these and for every guess after them.

    The first guess runs on fused states, each later one on what ``run`` gave for the guess before it. ``embedding`` may be the
    target's own. ``target_ids[d]`` is the target's id of draft token d. Parameters are allocated, not initialised.
    """

    target_ids: Tensor

    def __init__(self, spec: EagleSpec, embedding: Embedding, layer_context: LayerContext) -> None:
        super().__init__()
        self.spec, self.ops, self.dtype, size = spec, layer_context.ops, layer_context.dtype, spec.hidden_size
        self.embedding = embedding
        self.fc = Linear(layer_context.formats.projection(spec.fused_size, size), bias=False, layer_context=layer_context)
        self.layer = EagleLayer(spec, layer_context)
        self.norm = Norm(spec.norm, size, layer_context)
        self.lm_head = Linear(layer_context.formats.lm_head(size, spec.draft_vocab_size), bias=False, layer_context=layer_context)
        rotary = spec.layer.attention.rotary
        self.rotary = RotaryTables([] if rotary is None else [rotary], layer_context.device)
        self.register_buffer("target_ids", torch.arange(spec.draft_vocab_size, device=layer_context.device))

    def fuse(self, states_TAE: Tensor) -> Tensor:
        """The target's states, side by side in the order of ``spec.aux_layer_indices`` [T, A·E] -> hidden [T, E]."""
        hidden_TE: Tensor = self.fc(states_TAE.to(self.dtype))
        return hidden_TE

    def run(self, hidden_TE: Tensor, ids_T: Tensor, positions_T: Tensor, context: AttentionContext) -> Tensor:
        """One guess on: the hidden state that ``head`` reads, and that the guess after it runs on. [T, E]

        ``ids_T[i]`` is the token after the one at ``positions_T[i]``, to which ``hidden_TE[i]`` belongs. The positions are those
        that the context was made for.
        """
        assert len(hidden_TE) == len(ids_T) == len(positions_T), (len(hidden_TE), len(ids_T), len(positions_T))
        out_TE: Tensor = self.layer(hidden_TE, self.embedding(ids_T).to(self.dtype), context)
        return out_TE

    def head(self, hidden_TE: Tensor) -> Tensor:
        """Final norm and vocabulary projection. Logits over the draft vocabulary [T, D], float32."""
        logits_TD: Tensor = self.lm_head(self.norm(hidden_TE))
        return logits_TD.float()
