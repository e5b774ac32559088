"""Masks end-of-sequence and stop tokens until the output has ``min_tokens`` tokens.

The engine holds back stop strings for as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import token_index


@dataclass(frozen=True, slots=True)
class MinTokens:
    def applies(self, params: SamplingParams) -> bool:
        return params.min_tokens > 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        logits_RV[token_index([_masked_tokens(row) for row in rows], logits_RV)] = -torch.inf
        return logits_RV


def _masked_tokens(row: SamplingRow) -> tuple[int, ...]:
    if row.num_output_tokens >= row.params.min_tokens:
        return ()
    return row.eos_token_ids + row.params.stop_token_ids
