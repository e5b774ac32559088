"""Subtracts the penalty from a token's logit for each occurrence in the output, as OpenAI does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import column, token_index_and_values


@dataclass(frozen=True, slots=True)
class FrequencyPenalty:
    def applies(self, params: SamplingParams) -> bool:
        return params.frequency_penalty != 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        outputs = [row.updated_history().output_tokens for row in rows]
        token_ids, counts = [output.token_ids for output in outputs], [output.counts for output in outputs]
        index, count_N = token_index_and_values(token_ids, counts, logits_RV)
        penalty_N = column((row.params.frequency_penalty for row in rows), logits_RV)[index[0], 0]
        logits_RV[index] -= penalty_N * count_N
        return logits_RV
