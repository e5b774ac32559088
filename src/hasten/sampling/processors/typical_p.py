"""Keeps tokens whose surprise is close to the entropy, closest first, until they reach a probability.

Locally typical sampling (Meister et al., 2022, arXiv 2202.00666).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.topk import ascending


@dataclass(frozen=True, slots=True)
class TypicalP:
    def applies(self, params: SamplingParams) -> bool:
        return params.typical_p < 1

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument. Sorts the vocabulary of each row."""
        logprobs_RV = logits_RV.log_softmax(dim=1)
        probs_RV = logprobs_RV.exp()
        entropy_R1 = -(logprobs_RV * probs_RV).nansum(dim=1, keepdim=True)  # 0 · -inf counts as nothing
        distance_RV = (-logprobs_RV - entropy_R1).abs()
        sorted_RV, order_RV = ascending(distance_RV)
        mass_RV = logits_RV.gather(1, order_RV).softmax(dim=1).cumsum(dim=1)
        wanted_R1 = column((row.params.typical_p for row in rows), logits_RV)
        last_R1 = (mass_RV < wanted_R1).sum(dim=1, keepdim=True).clamp_(max=logits_RV.shape[1] - 1)
        dropped_RV = sorted_RV > sorted_RV.gather(1, last_R1)
        dropped_RV[:, 0] = False
        return logits_RV.masked_fill_(torch.zeros_like(dropped_RV).scatter_(1, order_RV, dropped_RV), -torch.inf)
