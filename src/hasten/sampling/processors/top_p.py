"""Keeps the most likely tokens until they reach a probability.

Nucleus sampling (Holtzman et al., 2019, arXiv 1904.09751). A token is masked if it and all less likely tokens together have
at most 1 - top_p. A sort of the vocabulary defines that sum. The most likely tokens alone mostly prove the same result.
Where rounding leaves a doubt, the row is sorted, so the kept set is always that of the sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column

# Relative error of one rounding to float32.
HALF_ULP = 2.0**-24
# Upper bound of the roundings of one probability: exp, division and comparison.
ROUNDINGS = 32
# Upper bound of the error of float64 sums over candidates and vocabulary.
DOUBLE_ERROR = 1e-12


@dataclass(frozen=True, slots=True)
class TopP:
    # How many top tokens are examined before the vocabulary is sorted, one size after the other.
    num_candidates: tuple[int, ...] = (256, 4096)

    def applies(self, params: SamplingParams) -> bool:
        return params.top_p < 1

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Return a new tensor; the argument is unchanged."""
        tail_R1 = column((1 - row.params.top_p for row in rows), logits_RV)
        cutoff_R1 = torch.full_like(tail_R1, -torch.inf)  # keeps every token
        open_N = torch.arange(len(rows), dtype=torch.int64, device=logits_RV.device)
        for size in self.num_candidates:
            if len(open_N) and size < logits_RV.shape[1]:
                logits_NV = logits_RV if len(open_N) == len(rows) else logits_RV[open_N]
                cutoff_R1[open_N], decided_N = _find_cutoff(logits_NV, tail_R1[open_N], size)
                open_N = open_N[~decided_N]
        kept_RV = torch.where(logits_RV < cutoff_R1, -torch.inf, logits_RV)
        if len(open_N):
            kept_RV[open_N] = top_p_by_sorting(logits_RV[open_N], tail_R1[open_N])
        return kept_RV


def _find_cutoff(logits_RV: Tensor, tail_R1: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Return the smallest logit that is kept [R, 1] and whether it is certain [R]; -inf where it is not.

    The sort adds float32 probabilities, which a float32 sum in ascending order has normalised. Each term of that sum is
    rounded at most once per later term. Its relative error is therefore at most 2**-24 times the mean rank of a token under
    the distribution, counted from the top. That rank is small for a peaked row. Here it is bounded by giving the last rank
    to every token that is no candidate.
    """
    num_tokens = logits_RV.shape[1]
    probs_RV = logits_RV.softmax(dim=1)
    total_R1 = probs_RV.sum(dim=1, keepdim=True, dtype=torch.float64)
    top_RK, token_RK = logits_RV.topk(num_candidates, dim=1)
    probs_RK = probs_RV.gather(1, token_RK).double() / total_R1
    sums_RK = probs_RK.cumsum(dim=1)
    rest_RK = 1 - sums_RK + probs_RK  # this token and all less likely ones

    rank_K = torch.arange(1, num_candidates + 1, dtype=torch.float64, device=logits_RV.device)
    past_R1 = (1 - sums_RK[:, -1:]).clamp_(min=0)
    mean_rank_R1 = (probs_RK * rank_K).sum(dim=1, keepdim=True) + past_R1 * num_tokens
    error_RK = rest_RK.abs() * (mean_rank_R1 + ROUNDINGS) * HALF_ULP + DOUBLE_ERROR
    stays_RK = rest_RK - error_RK > tail_R1
    goes_RK = rest_RK + error_RK < tail_R1
    stays_RK[:, 0] = True  # one token is always kept
    goes_RK[:, 0] = False

    num_kept_R1 = stays_RK.sum(dim=1, keepdim=True)
    cutoff_R1 = top_RK.gather(1, num_kept_R1 - 1)
    next_R1 = top_RK.gather(1, num_kept_R1.clamp(max=num_candidates - 1))
    # Only the sort's order separates tokens that are tied across the cutoff.
    reached_R1 = (num_kept_R1 < num_candidates) & (next_R1 < cutoff_R1)
    decided_R = (stays_RK | goes_RK).all(dim=1) & reached_R1[:, 0]
    return torch.where(decided_R.unsqueeze(1), cutoff_R1, -torch.inf), decided_R


def top_p_by_sorting(logits_RV: Tensor, tail_R1: Tensor) -> Tensor:
    """Mask the least likely tokens while their sum is at most ``tail_R1`` [R, V]: the definition."""
    sorted_RV, token_RV = logits_RV.sort(dim=1)
    dropped_RV = sorted_RV.softmax(dim=1).cumsum(dim=1) <= tail_R1
    dropped_RV[:, -1] = False
    return logits_RV.masked_fill(torch.zeros_like(dropped_RV).scatter_(1, token_RV, dropped_RV), -torch.inf)
