"""``MedusaHeads``: draft several tokens from one hidden state (Cai et al., 2024, arXiv 2401.10774).

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
    truncated_vocab_size: int  # tokens that the heads can draft
    bias: bool  # of the residual layers
    lm_head: LmHead  # the model's, one that all heads share, or one per head

    @property
    def truncated(self) -> bool:
        return self.truncated_vocab_size < self.vocab_size


class ResidualBlock(nn.Module):
    """x + silu(W x + b), ``num_layers`` times."""

    def __init__(self, spec: MedusaSpec, layer_context: LayerContext) -> None:
        super().__init__()
        formats, size = layer_context.formats, spec.hidden_size
        self.layers = nn.ModuleList(
            Linear(formats.projection(size, size), bias=spec.bias, layer_context=layer_context) for _ in range(spec.num_layers)
        )

    def forward(self, x_RE: Tensor) -> Tensor:
        for layer in self.layers:
            x_RE = x_RE + F.silu(layer(x_RE))
        return x_RE


class MedusaHeads(nn.Module):
    """Head i drafts the token i + 2 positions after the one whose hidden state it reads.

    The model itself gives the token at the next position. The heads read the state after the model's final norm. Parameters are
    allocated but not initialised.
    """

    def __init__(self, spec: MedusaSpec, layer_context: LayerContext) -> None:
        super().__init__()
        self.spec, formats = spec, layer_context.formats
        self.blocks = nn.ModuleList(ResidualBlock(spec, layer_context) for _ in range(spec.num_heads))
        num_lm_heads = {"model": 0, "shared": 1, "own": spec.num_heads}[spec.lm_head]
        self.lm_heads = nn.ModuleList(
            Linear(formats.lm_head(spec.hidden_size, spec.truncated_vocab_size), bias=False, layer_context=layer_context)
            for _ in range(num_lm_heads)
        )
        # The model's token id of each token of a truncated vocabulary. None: the ids are the model's.
        self.token_map: Tensor | None = None
        if spec.truncated:
            self.token_map = torch.empty(spec.truncated_vocab_size, dtype=torch.int64, device=layer_context.device)

    def hidden(self, x_RE: Tensor) -> list[Tensor]:
        """Return the hidden state [R, E] of each head, which an ``lm_head`` reads."""
        return [block(x_RE) for block in self.blocks]

    def forward(self, x_RE: Tensor, lm_head: Linear) -> Tensor:
        """Return logits [H, R, V], float32. ``lm_head`` is the model's, restricted to the heads' vocabulary."""
        hidden = self.hidden(x_RE)
        if self.spec.lm_head == "own":
            return torch.stack([head(state_RE) for head, state_RE in zip(self.lm_heads, hidden, strict=True)]).float()
        # One product for all heads: the matrix is read once.
        shared = lm_head if self.spec.lm_head == "model" else self.lm_heads[0]
        logits_NV: Tensor = shared(torch.cat(hidden)).float()
        return logits_NV.view(len(hidden), len(x_RE), -1)

    def token_ids(self, columns: Tensor) -> Tensor:
        """Return the model's token ids of columns of the logits."""
        return columns if self.token_map is None else self.token_map[columns]
