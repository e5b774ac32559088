"""Adds a number to the logit of each listed token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import token_index_and_values


@dataclass(frozen=True, slots=True)
class LogitBias:
    """As in the OpenAI API, -100 and 100 are ordinary numbers that all but forbid or force a token."""

    def applies(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        biases = [row.params.logit_bias for row in rows]
        index, bias_N = token_index_and_values([[*bias] for bias in biases], [[*bias.values()] for bias in biases], logits_RV)
        logits_RV[index] += bias_N
        return logits_RV
