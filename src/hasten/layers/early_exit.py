"""What early exit adds to a frozen model: one ``ExitHead`` per exit layer, and ``PromptHashTable``.

A tuned lens (Belrose et al., 2023, arXiv 2303.08112) maps the hidden state after an early layer to an estimate of the last layer's.
The model's own final norm and ``lm_head`` then read it. A classifier estimates how likely the resulting top token is that of the
full model (CALM, Schuster et al., 2022, arXiv 2207.07061).

Shape suffixes: R rows · T tokens · E hidden size · P planes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear

EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitHeadsSpec:
    layers: tuple[int, ...]  # exit layers, rising: how many layers a token computes before it exits there
    num_layers: int  # of the model
    hidden_size: int
    vocab_size: int


class ExitHead(nn.Module):
    """Parameters are allocated but not initialised. The classifier is always float32."""

    def __init__(self, spec: ExitHeadsSpec, layer_context: LayerContext) -> None:
        super().__init__()
        size = spec.hidden_size
        self.translate = Linear(layer_context.formats.projection(size, size), bias=True, layer_context=layer_context)
        self.classify_weight = nn.Parameter(torch.empty(size, dtype=torch.float32, device="cpu"), requires_grad=False)
        self.classify_bias = nn.Parameter(torch.empty(1, dtype=torch.float32, device="cpu"), requires_grad=False)

    def tuned_lens(self, hidden_RE: Tensor) -> Tensor:
        """Estimate the hidden state after the last layer: x + A x + b. [R, E]"""
        out_RE: Tensor = hidden_RE + self.translate(hidden_RE)
        return out_RE

    def agreement_logit(self, hidden_RE: Tensor) -> Tensor:
        """Return how likely the full model agrees with this exit's top token, as a logit. [R], float32

        It depends on the direction of the state alone. The sum per row makes the result independent of the number of rows.
        """
        x_RE = hidden_RE.float()
        x_RE = x_RE * torch.rsqrt(x_RE.square().mean(-1, keepdim=True) + EPS)
        return (x_RE * self.classify_weight).sum(-1) + self.classify_bias


class ExitHeads(nn.Module):
    def __init__(self, spec: ExitHeadsSpec, layer_context: LayerContext) -> None:
        super().__init__()
        assert list(spec.layers) == sorted(set(spec.layers)) and all(0 < layer < spec.num_layers for layer in spec.layers), spec
        self.spec = spec
        self.exits = nn.ModuleDict({str(layer): ExitHead(spec, layer_context) for layer in spec.layers})

    def at(self, layer: int) -> ExitHead:
        """Return the exit head after ``layer`` layers."""
        head = self.exits[str(layer)]
        assert isinstance(head, ExitHead)
        return head


@dataclass(frozen=True, slots=True)
class PromptHashTable:
    """The exit layer of every bucket of similar prompts (HashEE, Sun et al., 2022).

    The exit layer of a prompt is known before the model runs.
    Bit p of a prompt's bucket is the side of plane p on which its mean token embedding lies (Charikar, 2002).
    """

    planes_PE: Tensor  # float32, normals of planes through the origin
    layers: Tensor  # [2 ** P] int32, the exit layer of each bucket

    def __post_init__(self) -> None:
        assert self.layers.shape == (1 << len(self.planes_PE),), (self.planes_PE.shape, self.layers.shape)

    def bucket(self, embedded_TE: Tensor) -> int:
        """Return the bucket of a prompt from its token embeddings, as the model looks them up."""
        above_P = (self.planes_PE * embedded_TE.float().mean(0)).sum(-1) > 0
        return sum(1 << plane for plane, above in enumerate(above_P.tolist()) if above)

    def exit_layer(self, embedded_TE: Tensor) -> int:
        """Return how many layers compute the prompt; the model's number of layers means no early exit."""
        return int(self.layers[self.bucket(embedded_TE)])
