"""``Exits``: what is trained beside a frozen model so that it can be left early. One ``Exit`` for each layer to leave after.

A translator makes of a state after an early layer what the last layer would have made of it, as far as a matrix can (tuned lens,
Belrose et al., 2023, arXiv 2303.08112), so that the model's own final norm and vocabulary projection read it. A classifier says how
likely that is the token that the whole model would choose (CALM, Schuster et al., 2022, arXiv 2207.07061).

Shape suffixes: R rows · E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear

EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitsSpec:
    layers: tuple[int, ...]  # how many layers a token that leaves at each exit has seen, rising
    num_layers: int  # of the model
    hidden_size: int
    vocab_size: int


class Exit(nn.Module):
    """Parameters are allocated, not initialised. The classifier is float32 whatever the matrices are."""

    def __init__(self, spec: ExitsSpec, layer_context: LayerContext) -> None:
        super().__init__()
        size = spec.hidden_size
        self.translate = Linear(layer_context.formats.projection(size, size), bias=True, layer_context=layer_context)
        self.classify_weight = nn.Parameter(torch.empty(size, dtype=torch.float32), requires_grad=False)
        self.classify_bias = nn.Parameter(torch.empty(1, dtype=torch.float32), requires_grad=False)

    def tuned_lens(self, hidden_RE: Tensor) -> Tensor:
        """x + A x + b, in the place of the state after the last layer. [R, E]"""
        out_RE: Tensor = hidden_RE + self.translate(hidden_RE)
        return out_RE

    def agreement_logit(self, hidden_RE: Tensor) -> Tensor:
        """Of the chance that the whole model agrees, from the state's direction alone. [R], float32

        A sum per row, not a product: a row's bits must not depend on how many there are.
        """
        x_RE = hidden_RE.float()
        x_RE = x_RE * torch.rsqrt(x_RE.square().mean(-1, keepdim=True) + EPS)
        return (x_RE * self.classify_weight).sum(-1) + self.classify_bias


class Exits(nn.Module):
    def __init__(self, spec: ExitsSpec, layer_context: LayerContext) -> None:
        super().__init__()
        assert list(spec.layers) == sorted(set(spec.layers)) and all(0 < layer < spec.num_layers for layer in spec.layers), spec
        self.spec = spec
        self.exits = nn.ModuleDict({str(layer): Exit(spec, layer_context) for layer in spec.layers})

    def at(self, layer: int) -> Exit:
        """The exit after ``layer`` layers."""
        found = self.exits[str(layer)]
        assert isinstance(found, Exit)
        return found
