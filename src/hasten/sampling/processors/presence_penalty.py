"""Subtracts the penalty from the logit of every token that occurs in the output, as OpenAI does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column, token_index


@dataclass(frozen=True, slots=True)
class PresencePenalty:
    def applies(self, params: SamplingParams) -> bool:
        return params.presence_penalty != 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        index = token_index([row.updated_history().output_tokens.token_ids for row in rows], logits_RV)
        logits_RV[index] -= column((row.params.presence_penalty for row in rows), logits_RV)[index[0], 0]
        return logits_RV
