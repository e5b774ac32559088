"""``influence``: 1 - the mean cosine of a layer's input and output.

It is the block influence of ShortGPT (Men et al., 2024, arXiv 2403.03853).

Shape suffixes: B sequences · S tokens per sequence · T tokens · L layers · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.compress.prune.layer_score.base import check_finite
from hasten.compress.prune.layer_subset import LayerSubset, batches


class BlockInfluence:
    """All layers are scored once, and those that turn the hidden state least are removed."""

    def keep(self, subset: LayerSubset, num_layers: int, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> LayerSubset:
        influence_L = block_influence(subset, ids_BS, tick)
        check_finite(influence_L.tolist(), "influence")
        order = influence_L.argsort(descending=True, stable=True).tolist()
        return LayerSubset(subset.model, tuple(sorted(subset.layers[index] for index in order[:num_layers])))


@torch.no_grad()
def block_influence(subset: LayerSubset, ids_BS: Tensor, tick: Callable[[], None]) -> Tensor:
    """Return the influence of each layer, [L] float64."""
    cosines_L = torch.zeros(len(subset.layers), dtype=torch.float64, device="cpu")
    for batch_BS in batches(ids_BS):
        for index, (in_TE, out_TE) in enumerate(pairwise(subset.states(batch_BS, subset.context(batch_BS)))):
            cosines_L[index] += F.cosine_similarity(in_TE.double(), out_TE.double(), dim=-1).sum().cpu()
        tick()
    return 1 - cosines_L / ids_BS.numel()


SCORE = BlockInfluence()
