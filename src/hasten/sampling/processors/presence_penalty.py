"""Subtracts a number from the logit of every token that the answer has, however often (OpenAI; the prompt does not count)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class PresencePenalty:
    def applies(self, params: SamplingParams) -> bool:
        return params.presence_penalty != 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        pairs = TokenPairs.of([row.occurrences().answer.token_ids for row in rows], logits_RV)
        penalty_N = column((row.params.presence_penalty for row in rows), logits_RV)[pairs.row_N, 0]
        logits_RV[pairs.row_N, pairs.token_N] -= penalty_N
        return logits_RV
