"""``MedusaHeads``: guesses of several next tokens from one hidden state (Cai et al., 2024, arXiv 2401.10774).

Shape suffixes: R rows · E hidden size · H heads · V vocabulary of the heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear

LmHead = Literal["model", "shared", "own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaSpec:
    num_heads: int
    num_layers: int  # residual layers of a head
    hidden_size: int
    vocab_size: int  # of the model
    truncated_vocab_size: int  # tokens that the heads guess from
    bias: bool  # of the residual layers
    lm_head: LmHead  # the projection: the model's, one of the heads' own for all of them, or one per head

    @property
    def truncated(self) -> bool:
        return self.truncated_vocab_size < self.vocab_size

    @property
    def num_projections(self) -> int:
        return {"model": 0, "shared": 1, "own": self.num_heads}[self.lm_head]


class MedusaBlock(nn.Module):
    """x + silu(W x + b), ``num_layers`` times."""

    def __init__(self, spec: MedusaSpec, layer_context: LayerContext) -> None:
        super().__init__()
        size = spec.hidden_size
        self.layers = nn.ModuleList(
            Linear(layer_context.formats.projection(size, size), bias=spec.bias, layer_context=layer_context)
            for _ in range(spec.num_layers)
        )

    def forward(self, x_RE: Tensor) -> Tensor:
        for layer in self.layers:
            x_RE = x_RE + F.silu(layer(x_RE))
        return x_RE


class MedusaHeads(nn.Module):
    """Head i guesses the token i + 2 places after the one whose state it reads; place 1 is the model's own.

    The state is the one behind the model's final norm. Parameters are allocated, not initialised.
    """

    def __init__(self, spec: MedusaSpec, layer_context: LayerContext) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList(MedusaBlock(spec, layer_context) for _ in range(spec.num_heads))
        rows = spec.vocab_size if spec.lm_head == "model" else spec.truncated_vocab_size
        self.lm_heads = nn.ModuleList(
            Linear(layer_context.formats.lm_head(spec.hidden_size, rows), bias=False, layer_context=layer_context)
            for _ in range(spec.num_projections)
        )
        # Place among the heads' tokens -> token id. None: they are the model's.
        self.token_map: Tensor | None = None
        if spec.truncated:
            self.token_map = torch.empty(spec.truncated_vocab_size, dtype=torch.int64, device=layer_context.device)

    def hidden(self, x_RE: Tensor) -> list[Tensor]:
        """Each head's state, [R, E], for the vocabulary projection."""
        return [block(x_RE) for block in self.blocks]

    def forward(self, x_RE: Tensor, lm_head: Linear) -> Tensor:
        """Logits over the heads' tokens [H, R, V], float32. ``vocabulary``: the rows of these tokens of the model's projection."""
        hidden = self.hidden(x_RE)
        if self.spec.lm_head == "own":
            return torch.stack([head(state_RE) for head, state_RE in zip(self.lm_heads, hidden, strict=True)]).float()
        # One product for all heads: the projection is read once.
        projection = lm_head if self.spec.lm_head == "model" else self.lm_heads[0]
        logits_NV: Tensor = projection(torch.cat(hidden)).float()
        return logits_NV.view(len(hidden), len(x_RE), -1)

    def token_ids(self, places: Tensor) -> Tensor:
        """The model's token ids of columns of the logits."""
        return places if self.token_map is None else self.token_map[places]
