"""Subtracts a number per occurrence in the answer from the logit of every token (OpenAI; the prompt does not count)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class FrequencyPenalty:
    def applies(self, params: SamplingParams) -> bool:
        return params.frequency_penalty != 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        answers = [row.occurrences().answer for row in rows]
        token_ids, counts = [answer.token_ids for answer in answers], [answer.counts for answer in answers]
        pairs, count_N = TokenPairs.counted(token_ids, counts, logits_RV)
        penalty_N = column((row.params.frequency_penalty for row in rows), logits_RV)[pairs.row_N, 0]
        logits_RV[pairs.row_N, pairs.token_N] -= penalty_N * count_N
        return logits_RV
