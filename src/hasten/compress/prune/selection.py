"""``Selection``: the layers, heads, neurons and channels that stay.

Shape suffixes: L layers that stay · K key/value heads · H query heads · Q query heads per key/value head · F neurons ·
E hidden size. Sizes are those after pruning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.compress.prune.importance.base import ImportanceScores
from hasten.compress.prune.shape import Shape


@dataclass(frozen=True, slots=True)
class Selection:
    """Indices into the unpruned model, each row ascending, int64."""

    layers: tuple[int, ...]
    kv_heads_LK: Tensor
    heads_LH: Tensor  # the query heads of each kept key/value head lie together
    neurons_LF: Tensor
    channels_E: Tensor

    @classmethod
    def everything(cls, shape: Shape, layers: tuple[int, ...]) -> Selection:
        """Return the selection of entire layers. ``shape`` is that of the unpruned model."""
        sizes = (shape.num_kv_heads, shape.num_heads, shape.intermediate_size)
        kv_heads, heads, neurons = (torch.arange(size, dtype=torch.int64, device="cpu").expand(len(layers), -1) for size in sizes)
        return cls(layers, kv_heads, heads, neurons, torch.arange(shape.hidden_size, dtype=torch.int64, device="cpu"))


def select(scores: ImportanceScores, target: Shape, layers: tuple[int, ...]) -> Selection:
    """Return the highest scores of each row, in the counts of ``target``; of equal scores the first."""
    kv_heads_LK = _highest(scores.groups_LK, target.num_kv_heads)
    heads_LKQ = scores.heads_LH.view(*scores.groups_LK.shape, -1)
    group_size = heads_LKQ.shape[2]
    kept_LKQ = heads_LKQ.gather(1, kv_heads_LK[:, :, None].expand(-1, -1, group_size))
    within_LKQ = _highest(kept_LKQ, target.num_heads // target.num_kv_heads)
    heads_LH = (kv_heads_LK[:, :, None] * group_size + within_LKQ).flatten(1)
    neurons_LF = _highest(scores.neurons_LF, target.intermediate_size)
    return Selection(layers, kv_heads_LK, heads_LH, neurons_LF, _highest(scores.channels_E, target.hidden_size))


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores of the last dimension, ascending."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values
