"""Tokens of the prompt and of the answer become less likely: positive logits are divided, negative ones multiplied.

CTRL (Keskar et al., 2019, arXiv 1909.05858), with the treatment of negative logits that transformers gave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    def applies(self, params: SamplingParams) -> bool:
        return params.repetition_penalty != 1

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        pairs = TokenPairs.of([row.occurrences().whole.token_ids for row in rows], logits_RV)
        penalty_N = column((row.params.repetition_penalty for row in rows), logits_RV)[pairs.row_N, 0]
        logit_N = logits_RV[pairs.row_N, pairs.token_N]
        logits_RV[pairs.row_N, pairs.token_N] = torch.where(logit_N < 0, logit_N * penalty_N, logit_N / penalty_N)
        return logits_RV
