"""Adds the given number to the logit of each given token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class LogitBias:
    """-100 and 100 are ordinary numbers here, as with OpenAI: they all but forbid or force a token."""

    def applies(self, params: SamplingParams) -> bool:
        return bool(params.logit_bias)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        num_tokens = logits_RV.shape[1]
        known = [{i: bias for i, bias in row.params.logit_bias.items() if i < num_tokens} for row in rows]
        pairs = TokenPairs.of([list(biases) for biases in known], logits_RV)
        bias_N = logits_RV.new_tensor([bias for biases in known for bias in biases.values()])
        logits_RV[pairs.row_N, pairs.token_N] += bias_N
        return logits_RV
