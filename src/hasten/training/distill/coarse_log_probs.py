"""Coarse distributions: some tokens, and one class for the rest of the vocabulary.

A divergence between coarse distributions is at most that of the full ones (the data-processing inequality), and it is the same if
every token has its own class.

Shape suffixes: r rows · V vocabulary · K tokens with a class of their own · C classes: K, and one for the rest if K < V.
"""

from __future__ import annotations

import torch
from torch import Tensor


def coarse_log_probs(logits_rV: Tensor, ids_rK: Tensor) -> Tensor:
    """Return the log-probabilities of the tokens ``ids_rK``, and last that of all others.

    The result is [r, C] float32. The rest is a logsumexp over its own logits and no difference from 1. It is therefore exact
    where it is tiny, and so is its gradient.
    """
    logits_rV = logits_rV.float()
    logits_rC = logits_rV.gather(-1, ids_rK)
    if ids_rK.shape[-1] < logits_rV.shape[-1]:
        rest_r1 = logits_rV.scatter(-1, ids_rK, -torch.inf).logsumexp(-1, keepdim=True)
        logits_rC = torch.cat((logits_rC, rest_r1), -1)
    return logits_rC.log_softmax(-1)


def top_classes(logits_rV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` most likely tokens of each row and their ``coarse_log_probs``.

    Tokens are int64 [r, K], best first.
    """
    ids_rK = logits_rV.topk(k, dim=-1).indices
    return ids_rK, coarse_log_probs(logits_rV, ids_rK)
