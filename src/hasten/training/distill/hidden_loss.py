"""``HiddenLoss``: the distance of a student's hidden states from its teacher's, layer by layer.

A linear projection from the student's to the teacher's hidden size is trained with the student and dropped afterwards (FitNets,
Romero et al., 2015, arXiv 1412.6550; TinyBERT, Jiao et al., 2020, arXiv 1909.10351).

Shape suffixes: T tokens · R predicted positions · E hidden size of the student · F hidden size of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.training.corpus import derived_seed

_EPS = 1e-12  # far below the mean square of any state but that of zeros


@dataclass(frozen=True, slots=True)
class HiddenLoss:
    layers: tuple[int, ...]  # the teacher's layer for each layer of the student
    projections_FE: tuple[nn.Parameter, ...]  # one per layer of the student

    @classmethod
    def new(
        cls, num_layers: int, hidden_size: int, teacher_layers: int, teacher_hidden_size: int, seed: int, device: torch.device
    ) -> HiddenLoss:
        """Return the loss with initial projections: the identity between equal sizes, random otherwise."""
        seeds = (derived_seed(seed, "hidden projection", layer) for layer in range(num_layers))
        projections = tuple(nn.Parameter(_projection(hidden_size, teacher_hidden_size, seed).to(device)) for seed in seeds)
        return cls(matched_layers(num_layers, teacher_layers), projections)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"hidden_projections.{layer}": projection_FE for layer, projection_FE in enumerate(self.projections_FE)}

    def __call__(self, student: Mapping[int, Tensor], rows_R: Tensor, teacher: Mapping[int, Tensor]) -> Tensor:
        """Return the mean squared error of normalised states, a mean over layers and a sum over positions.

        ``student`` has its layers' states of all tokens, [T, E], and ``teacher`` those of its own layers at the positions, [R, F].
        Both are divided by their root mean square at each position, as the layers' own norms do. Layers and positions of large
        states do not outweigh the others then, and new weights, whose states are small, need not grow first.
        """
        total = torch.zeros((), dtype=torch.float32, device=rows_R.device)
        for layer, (teacher_layer, projection_FE) in enumerate(zip(self.layers, self.projections_FE, strict=True)):
            projected_RF = F.linear(_normed(student[layer][rows_R]), projection_FE).float()
            total = total + (projected_RF - _normed(teacher[teacher_layer])).square().mean(-1).sum()
        return total / len(self.layers)


def matched_layers(num_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Return the teacher's layer for each of the student's, spread evenly up to the last.

    Half as many layers match every second one (DistilBERT, Sanh et al., 2019, arXiv 1910.01108).
    """
    ends = ((2 * (layer + 1) * teacher_layers + num_layers) // (2 * num_layers) for layer in range(num_layers))  # rounded
    return tuple(max(1, end) - 1 for end in ends)


def _normed(states: Tensor) -> Tensor:
    """Return states with a root mean square of 1 at each position, float32."""
    return F.rms_norm(states.float(), states.shape[-1:], eps=_EPS)


def _projection(hidden_size: int, teacher_hidden_size: int, seed: int) -> Tensor:
    """Return an initial projection [F, E] that keeps the mean square of its input."""
    if hidden_size == teacher_hidden_size:
        return torch.eye(hidden_size, dtype=torch.float32)
    shape, generator = (teacher_hidden_size, hidden_size), torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32) / math.sqrt(hidden_size)
