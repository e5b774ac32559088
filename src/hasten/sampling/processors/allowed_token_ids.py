"""Masks every token that is not in the list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import token_index


@dataclass(frozen=True, slots=True)
class AllowedTokenIds:
    def applies(self, params: SamplingParams) -> bool:
        return params.allowed_token_ids is not None

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Return a new tensor; the argument is unchanged."""
        index = token_index([row.params.allowed_token_ids or () for row in rows], logits_RV)
        allowed_RV = torch.full_like(logits_RV, -torch.inf)
        allowed_RV[index] = logits_RV[index]
        return allowed_RV
