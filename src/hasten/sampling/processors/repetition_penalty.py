"""Divides positive logits of tokens in the sequence by the penalty, multiplies negative ones.

CTRL (Keskar et al., 2019, arXiv 1909.05858), with the treatment of negative logits that transformers added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column, token_index


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    def applies(self, params: SamplingParams) -> bool:
        return params.repetition_penalty != 1

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        index = token_index([row.updated_history().all_tokens.token_ids for row in rows], logits_RV)
        penalty_N = column((row.params.repetition_penalty for row in rows), logits_RV)[index[0], 0]
        logit_N = logits_RV[index]
        logits_RV[index] = torch.where(logit_N < 0, logit_N * penalty_N, logit_N / penalty_N)
        return logits_RV
