"""Losses and embeddings of examples under one model.

Shape suffixes: B examples of a batch · S tokens of the longest one · R predicted positions · N examples · E hidden size ·
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core.errors import CheckpointError
from hasten.training.examples import Example, Examples
from hasten.training.lm_head_loss import BLOCK_ELEMENTS
from hasten.training.predicted_rows import predicted_rows
from hasten.training.target_model import TargetModel


@dataclass(frozen=True, slots=True)
class ExampleLosses:
    sums_N: Tensor  # negative log-likelihood of each example's output, in nats, float64
    counts_N: Tensor  # its tokens, int64
    embeddings_NE: Tensor  # float32, of length 1: the direction of the mean of the final hidden states, as ``LLM.embed``


@torch.no_grad()
def example_losses(
    model: TargetModel, examples: Sequence[Example], batch: int, tick: Callable[[int], None] = lambda count: None
) -> ExampleLosses:
    """Return losses and embeddings of examples.

    Examples of similar lengths run together, so that little is padded. ``tick`` gets the number of examples of each batch; it may
    raise. Raises ``CheckpointError`` for losses that are not finite.
    """
    source = Examples.join(examples, [])
    counts_N = source.predicted_counts_N
    sums_N = torch.zeros(len(examples), dtype=torch.float64, device="cpu")
    embeddings_NE = torch.zeros(len(examples), model.spec.hidden_size, dtype=torch.float32, device="cpu")
    lengths_N = torch.tensor([len(example.ids) for example in examples], dtype=torch.int64, device="cpu")
    order = lengths_N.argsort(stable=True)
    for indices_B in torch.split(order, batch):
        numbered = source.numbered(indices_B.tolist())
        normed_BSE = model.normed(model.hidden_states(numbered.ids_BS)).view(*numbered.ids_BS.shape, -1)
        rows = predicted_rows(numbered)
        losses_R = _losses(normed_BSE.flatten(0, 1)[rows.rows_R], model.lm_head_VE, rows.labels_R)
        owners_R = indices_B.repeat_interleave(counts_N[indices_B])
        sums_N.index_add_(0, owners_R, losses_R.double())
        is_token_BS = torch.arange(normed_BSE.shape[1], dtype=torch.int64, device="cpu") < lengths_N[indices_B, None]
        embeddings_NE[indices_B] = F.normalize((normed_BSE * is_token_BS[..., None]).sum(1))
        tick(len(indices_B))
    if not bool(sums_N.isfinite().all()):
        raise CheckpointError(f"the model {model.folder} gives losses that are not finite", remedy="Use an intact model")
    return ExampleLosses(sums_N, counts_N, embeddings_NE)


def _losses(normed_RE: Tensor, lm_head_VE: Tensor, labels_R: Tensor) -> Tensor:
    """Return -log p of each label, with one block of logits in memory at a time."""
    block = max(1, BLOCK_ELEMENTS // len(lm_head_VE))
    pieces = zip(torch.split(normed_RE, block), torch.split(labels_R, block), strict=True)
    return torch.cat([F.cross_entropy(normed_rE @ lm_head_VE.T, labels_r, reduction="none") for normed_rE, labels_r in pieces])
