"""Only the listed tokens may be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class AllowedTokenIds:
    def applies(self, params: SamplingParams) -> bool:
        return params.allowed_token_ids is not None

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Pure."""
        pairs = TokenPairs.of([row.params.allowed_token_ids or () for row in rows], logits_RV)
        allowed_RV = torch.full_like(logits_RV, -torch.inf)
        allowed_RV[pairs.row_N, pairs.token_N] = logits_RV[pairs.row_N, pairs.token_N]
        return allowed_RV
