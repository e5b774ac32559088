"""Keeps the likeliest tokens until they reach a probability: nucleus sampling (Holtzman et al., 2019, arXiv 1904.09751).

A token goes when it and all less likely tokens together have at most 1 - top_p. That sum is defined by a sort of the whole
vocabulary. The same answer mostly follows from the likeliest tokens alone; where rounding could make a difference, the row is
sorted after all, so the kept set is always that of the sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist

# What one rounding to float32 may change, relative to the value.
HALF_ULP = 2.0**-24
# Roundings of a single probability (exp, division, comparison), with room to spare.
ROUNDINGS = 32
# The same where the rest of the vocabulary is summed in float32 too.
SUM_ROUNDINGS = 256
# Error of a difference of float64 sums over candidates and vocabulary, with room to spare.
DOUBLE_ERROR = 1e-12


@dataclass(frozen=True, slots=True)
class TopP:
    # How many of the likeliest tokens are looked at, one size after the other, before a sort of the whole vocabulary.
    num_candidates: tuple[int, ...] = (256, 4096)

    def applies(self, params: SamplingParams) -> bool:
        return params.top_p < 1

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        tail_R1 = column((1 - row.params.top_p for row in rows), logits_RV)
        cut_R1 = torch.full_like(tail_R1, -torch.inf)  # keeps everything
        open_N = torch.arange(len(rows), device=logits_RV.device)
        for size in self.num_candidates:
            if len(open_N) and size < logits_RV.shape[1]:
                logits_NV = logits_RV if len(open_N) == len(rows) else logits_RV[open_N]
                cut_R1[open_N], decided_N = _cut(logits_NV, tail_R1[open_N], size)
                open_N = open_N[~decided_N]
        kept_RV = torch.where(logits_RV < cut_R1, -torch.inf, logits_RV)
        if len(open_N):
            kept_RV[open_N] = by_sorting(logits_RV[open_N], tail_R1[open_N])
        return kept_RV

    def shorten(self, listed: Shortlist, rows: Sequence[SamplingRow]) -> None:
        """The bound of ``_cut``, with the sums taken from the unlikely end, where they are small."""
        tail_R1 = np.array([1 - row.params.top_p for row in rows], dtype=np.float32)[:, None]
        cut_R = np.array([self.applies(row.params) for row in rows])
        mass_RK = np.exp(listed.relative().astype(np.float64))
        past_R1 = np.where(cut_R, listed.unlisted_mass(), 0.0)[:, None]
        total_R1 = mass_RK.sum(axis=1, keepdims=True) + past_R1
        probs_RK, past_R1 = mass_RK / total_R1, past_R1 / total_R1
        rest_RK = past_R1 + probs_RK[:, ::-1].cumsum(axis=1)[:, ::-1]  # this token and all less likely ones

        num_listed = probs_RK.shape[1]
        mean_rank_R1 = (probs_RK @ np.arange(1.0, num_listed + 1))[:, None] + past_R1 * listed.logits_RV.shape[1]
        error_RK = rest_RK * (mean_rank_R1 + SUM_ROUNDINGS) * HALF_ULP + DOUBLE_ERROR
        stays_RK, goes_RK = rest_RK - error_RK > tail_R1, rest_RK + error_RK < tail_R1
        stays_RK[:, 0], goes_RK[:, 0] = True, False

        num_kept_R, every = stays_RK.sum(axis=1), np.arange(len(rows))
        last_R = listed.value_RK[every, num_kept_R - 1]
        next_R = listed.value_RK[every, np.minimum(num_kept_R, num_listed - 1)]
        reached_R = (num_kept_R < num_listed) & (next_R < last_R) & (~listed.open_R | (last_R > listed.floor_R))
        reached_R |= (num_kept_R == num_listed) & ~listed.open_R
        listed.decided_R &= ((stays_RK | goes_RK).all(axis=1) & reached_R) | ~cut_R
        listed.remove((listed.value_RK < last_R[:, None]) & cut_R[:, None], cut_R)


def _cut(logits_RV: Tensor, tail_R1: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The smallest logit that stays [R, 1], and whether it is certain [R]; -inf where it is not.

    The sort adds float32 probabilities, normalised by a float32 sum in ascending order. Each term of that sum is rounded
    at most once per later term, so its relative error is at most 2**-24 times the mean rank (counted from the top) under
    the distribution itself: small for a peaked row, and bounded here by taking every token past the candidates as last.
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
    stays_RK[:, 0] = True  # one token always stays
    goes_RK[:, 0] = False

    num_kept_R1 = stays_RK.sum(dim=1, keepdim=True)
    cut_R1 = top_RK.gather(1, num_kept_R1 - 1)
    next_R1 = top_RK.gather(1, num_kept_R1.clamp(max=num_candidates - 1))
    # Tokens tied across the cut are told apart only by the order in which the sort leaves them.
    reached_R1 = (num_kept_R1 < num_candidates) & (next_R1 < cut_R1)
    decided_R = (stays_RK | goes_RK).all(dim=1) & reached_R1[:, 0]
    return torch.where(decided_R.unsqueeze(1), cut_R1, -torch.inf), decided_R


def by_sorting(logits_RV: Tensor, tail_R1: Tensor) -> Tensor:
    """The definition: sort, add up from the least likely, drop while the sum is at most ``tail_R1``. [R, V]"""
    sorted_RV, token_RV = logits_RV.sort(dim=1)
    dropped_RV = sorted_RV.softmax(dim=1).cumsum(dim=1) <= tail_R1
    dropped_RV[:, -1] = False
    return logits_RV.masked_fill(torch.zeros_like(dropped_RV).scatter_(1, token_RV, dropped_RV), -torch.inf)
