"""Keeps the k most likely tokens and those tied with the k-th (Fan et al., 2018, arXiv 1805.04833)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow


@dataclass(frozen=True, slots=True)
class TopK:
    def applies(self, params: SamplingParams) -> bool:
        return params.top_k is not None

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        num_tokens = logits_RV.shape[1]
        sizes = [min(row.params.top_k or num_tokens, num_tokens) for row in rows]
        top_RK = logits_RV.topk(max(sizes), dim=1).values
        kth_R1 = top_RK.gather(1, torch.tensor(sizes, dtype=torch.int64, device=logits_RV.device).unsqueeze(1) - 1)
        return logits_RV.masked_fill_(logits_RV < kth_R1, -torch.inf)
