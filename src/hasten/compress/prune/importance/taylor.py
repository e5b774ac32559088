"""``taylor``: the first-order change of the loss without a group, |Σ w · dL/dw|.

It is the importance of LLM-Pruner (Ma et al., 2023, arXiv 2305.11627), by the last matrix of a group: the sum is over the weights
that read the group, which are the columns of the last projections for heads and neurons, and the norms' weights and biases for
channels. It equals Σ x · dL/dx, where x is what those weights read, so no gradient of a weight is needed.

Shape suffixes: as in ``base``; N scores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.compress.prune.importance.base import ImportanceScores
from hasten.compress.prune.importance.read_tensors import Kind, visit_reads
from hasten.compress.prune.layer_subset import LayerSubset, batches, next_token_loss
from hasten.compress.prune.shape import Shape

TOKENS = 1024  # that run at a time, with their graph


class TaylorImportance:
    """Magnitudes are summed over sequences: in a text that the model has learned, signed values cancel."""

    @torch.enable_grad()
    def measure(self, subset: LayerSubset, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> ImportanceScores:
        shape = Shape.of(subset.model.spec)
        parts = []
        for batch_BS in batches(ids_BS, TOKENS):
            heads_LBX, neurons_LBF, channels_NBE = _changes(subset, batch_BS)
            heads_LBH = heads_LBX.view(*heads_LBX.shape[:2], shape.num_heads, -1).sum(-1)
            groups_LBK = heads_LBH.view(*heads_LBH.shape[:2], shape.num_kv_heads, -1).sum(-1)
            scores = (groups_LBK.abs().sum(1), heads_LBH.abs().sum(1), neurons_LBF.abs().sum(1), channels_NBE.sum(0).abs().sum(0))
            parts.append(scores)
            tick()
        return ImportanceScores(*(torch.stack(batch_scores).sum(0) for batch_scores in zip(*parts, strict=True)))


def _changes(subset: LayerSubset, ids_BS: Tensor) -> list[Tensor]:
    """Return Σ x · dL/dx over the tokens of each sequence, [tensors, B, N] float64, for each kind."""
    read: dict[Kind, list[Tensor]] = {"heads": [], "neurons": [], "channels": []}
    with visit_reads(subset, lambda kind, number, tensor: read[kind].append(tensor)):
        loss = next_token_loss(subset.model, subset.last_state(ids_BS), ids_BS)
    gradients = iter(torch.autograd.grad(loss, [tensor for tensors in read.values() for tensor in tensors]))
    changes = []
    for tensors in read.values():
        products = ((tensor.detach() * next(gradients)).view(*ids_BS.shape, -1) for tensor in tensors)
        changes.append(torch.stack([product.sum(1, dtype=torch.float64) for product in products]))
    return changes


METHOD = TaylorImportance()
