"""Keeps the tokens whose surprise is closest to the entropy until they reach a probability.

Locally typical sampling (Meister et al., 2022, arXiv 2202.00666).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column


@dataclass(frozen=True, slots=True)
class TypicalP:
    def applies(self, params: SamplingParams) -> bool:
        return params.typical_p < 1

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it. The vocabulary of each row is sorted."""
        logprobs_RV = logits_RV.log_softmax(dim=1)
        entropy_R1 = -(logprobs_RV * logprobs_RV.exp()).nansum(dim=1, keepdim=True)  # 0 · -inf counts as 0
        distance_RV = (-logprobs_RV - entropy_R1).abs()
        order_RV = _stable_argsort(distance_RV)
        sorted_RV = distance_RV.gather(1, order_RV)
        mass_RV = logits_RV.gather(1, order_RV).softmax(dim=1).cumsum(dim=1)
        threshold_R1 = column((row.params.typical_p for row in rows), logits_RV)
        last_R1 = (mass_RV < threshold_R1).sum(dim=1, keepdim=True).clamp_(max=logits_RV.shape[1] - 1)
        dropped_RV = sorted_RV > sorted_RV.gather(1, last_R1)
        dropped_RV[:, 0] = False
        return logits_RV.masked_fill_(torch.zeros_like(dropped_RV).scatter_(1, order_RV, dropped_RV), -torch.inf)


def _stable_argsort(distance_RV: Tensor) -> Tensor:
    """Return the order that sorts each row of numbers from 0 on [R, V]; NaN comes last.

    numpy sorts integers with wide registers: 0.4 ms for 151,936 tokens, where torch takes 12.6 ms.
    """
    if distance_RV.device.type != "cpu":
        return distance_RV.argsort(dim=1, stable=True)
    # The bits of a float from 0 on ascend with its value; the token id below them orders ties.
    key_RV = distance_RV.numpy().view(np.uint32).astype(np.uint64) << np.uint64(32)
    key_RV |= np.arange(distance_RV.shape[1], dtype=np.uint64)
    key_RV.sort(axis=1)
    return torch.from_numpy((key_RV & np.uint64(0xFFFFFFFF)).astype(np.int64))
