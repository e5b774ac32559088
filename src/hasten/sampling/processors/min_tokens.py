"""No answer ends before it has ``min_tokens`` tokens: end-of-sequence and stop tokens are masked (stop strings wait elsewhere)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class MinTokens:
    def applies(self, params: SamplingParams) -> bool:
        return params.min_tokens > 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        return TokenPairs.of([_ends(row) for row in rows], logits_RV).forbid(logits_RV)


def _ends(row: SamplingRow) -> tuple[int, ...]:
    if row.num_answer_tokens >= row.params.min_tokens:
        return ()
    return row.eos_token_ids + row.params.stop_token_ids
