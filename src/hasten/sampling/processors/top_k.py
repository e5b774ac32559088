"""Keeps the k likeliest tokens, and those tied with the last of them (Fan et al., 2018, arXiv 1805.04833). Exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist


@dataclass(frozen=True, slots=True)
class TopK:
    def applies(self, params: SamplingParams) -> bool:
        return params.top_k is not None

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        num_tokens = logits_RV.shape[1]
        sizes = [min(row.params.top_k or num_tokens, num_tokens) for row in rows]
        top_RK = logits_RV.topk(max(sizes), dim=1).values
        last_R1 = top_RK.gather(1, torch.tensor(sizes, device=logits_RV.device).unsqueeze(1) - 1)
        return logits_RV.masked_fill_(logits_RV < last_R1, -torch.inf)

    def shorten(self, listed: Shortlist, rows: Sequence[SamplingRow]) -> None:
        """The list is enough if it holds the k-th token and everything tied with it."""
        num_tokens, num_listed = listed.logits_RV.shape[1], listed.value_RK.shape[1]
        size_R = np.array([min(row.params.top_k or num_tokens, num_tokens) for row in rows])
        cut_R = size_R < num_tokens
        last_R = listed.value_RK[np.arange(len(rows)), np.minimum(size_R, num_listed) - 1]
        last_R = np.where(size_R <= num_listed, last_R, -np.inf)
        listed.decided_R &= ~cut_R | ~listed.open_R | (last_R > listed.floor_R)
        listed.remove((listed.value_RK < last_R[:, None]) & cut_R[:, None], cut_R)
