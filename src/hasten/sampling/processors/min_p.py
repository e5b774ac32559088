"""Masks tokens whose probability is below a fraction of the highest one.

Min-p sampling (Nguyen et al., 2024, arXiv 2407.01082).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column


@dataclass(frozen=True, slots=True)
class MinP:
    def applies(self, params: SamplingParams) -> bool:
        return params.min_p > 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        probs_RV = logits_RV.softmax(dim=1)
        threshold_R1 = probs_RV.amax(dim=1, keepdim=True) * column((row.params.min_p for row in rows), logits_RV)
        return logits_RV.masked_fill_(probs_RV < threshold_R1, -torch.inf)
