"""``perplexity``: the layer whose absence raises the loss least is removed, one at a time.

Shape suffixes: B sequences · S tokens per sequence · T tokens · E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hasten.compress.prune.layer_score.base import check_finite
from hasten.compress.prune.layer_subset import LayerSubset, batches, next_token_loss

MAX_TOKENS = 8192  # of the calibration text: each round runs half the model once per layer


class PerplexityWithout:
    """Greedy: one layer per round, on the first sequences, up to ``MAX_TOKENS`` tokens."""

    def keep(self, subset: LayerSubset, num_layers: int, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> LayerSubset:
        measured_BS = ids_BS[: max(1, MAX_TOKENS // ids_BS.shape[1])]
        while len(subset.layers) > num_layers:
            losses = losses_without(subset, measured_BS, tick)
            check_finite(losses.values(), "perplexity")
            subset = subset.without(min(losses, key=lambda layer: losses[layer]))
        return subset


@torch.no_grad()
def losses_without(subset: LayerSubset, ids_BS: Tensor, tick: Callable[[], None]) -> dict[int, float]:
    """Return the loss without each layer: the summed cross entropy of the next tokens."""
    losses = dict.fromkeys(subset.layers, 0.0)
    for batch_BS in batches(ids_BS):
        context = subset.context(batch_BS)
        for position, (layer, hidden_TE) in enumerate(zip(subset.layers, subset.states(batch_BS, context), strict=False)):
            # The layers before the missing one have run already.
            for later in subset.layers[position + 1 :]:
                hidden_TE = subset.model.decoder.layers[later](hidden_TE, later, context)
            losses[layer] += float(next_token_loss(subset.model, hidden_TE, batch_BS))
        tick()
    return losses


SCORE = PerplexityWithout()
