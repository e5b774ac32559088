"""``best_candidates``: the best continuations of a request's live beams, from their log-probabilities.

Shape suffixes: B live beams · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.search.beam import BeamCandidate


def best_candidates(logprobs_BV: Tensor, beam_scores: Sequence[float], k: int) -> list[BeamCandidate]:
    """Return the ``k`` best candidates by ``beam_scores[beam] + logprob``, best first.

    Ties go by beam, then by token id. ``logprobs_BV`` are processed log-probabilities without NaN. Forbidden tokens have -inf and
    yield no candidate, so the result may be shorter. Sums are taken in float32, as in transformers.
    """
    vocab_size = logprobs_BV.shape[1]
    scores_B1 = torch.tensor(beam_scores, dtype=torch.float32, device=logprobs_BV.device)[:, None]
    totals = (logprobs_BV.float() + scores_B1).flatten()
    k = min(k, totals.numel())
    values, indices = torch.topk(totals, min(k + 1, totals.numel()))
    if len(values) > k and values[k] == values[k - 1]:
        # topk breaks ties arbitrarily: keep all greater values, then the first of the equal ones.
        greater = indices[values > values[k]]
        equal = (totals == values[k]).nonzero().flatten()[: k - len(greater)]
        indices = torch.cat([greater, equal])
    ranked = sorted(zip((-totals[indices]).tolist(), indices.tolist(), strict=True))[:k]
    return [BeamCandidate(index // vocab_size, index % vocab_size, -negated) for negated, index in ranked if negated < math.inf]
