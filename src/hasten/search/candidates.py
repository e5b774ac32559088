"""The best continuations of all live beams of one request, from a tensor of log-probabilities.

Shape suffixes: B live beams · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.search.base import Candidate


def best_candidates(logprobs_BV: Tensor, scores: Sequence[float], k: int) -> list[Candidate]:
    """The ``k`` best (beam, token) pairs by ``scores[beam] + logprob``, best first; equal ones by beam, then by token id.

    ``logprobs_BV`` are log-probabilities after the logits processors, without NaN. A token at -inf is forbidden and no
    candidate, so there may be fewer than ``k``. Sums are taken in float32, as transformers takes them.
    """
    vocabulary = logprobs_BV.shape[1]
    scores_B1 = torch.tensor(scores, dtype=torch.float32, device=logprobs_BV.device)[:, None]
    totals = (logprobs_BV.float() + scores_B1).flatten()
    k = min(k, totals.numel())
    values, places = torch.topk(totals, min(k + 1, totals.numel()))
    if len(values) > k and values[k] == values[k - 1]:
        # topk cuts through equal values as it likes: take all that are better, and of the equal ones the first.
        better = places[values > values[k]]
        equal = (totals == values[k]).nonzero().flatten()[: k - len(better)]
        places = torch.cat([better, equal])
    pairs = sorted(zip((-totals[places]).tolist(), places.tolist(), strict=True))[:k]
    allowed = ((place, -negated) for negated, place in pairs if negated < math.inf)
    return [Candidate(place // vocabulary, place % vocabulary, score) for place, score in allowed]
