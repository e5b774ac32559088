"""No run of n tokens occurs twice, prompt included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.token_pairs import TokenPairs


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    def applies(self, params: SamplingParams) -> bool:
        return params.no_repeat_ngram_size is not None

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        return TokenPairs.of([_repeating(row) for row in rows], logits_RV).forbid(logits_RV)


def _repeating(row: SamplingRow) -> list[int]:
    """The tokens that would repeat a run: each follows an earlier occurrence of the last n - 1 tokens.

    ::

        token_ids   a b c d e a b c     n = 4
                    ^start      ^ the last n - 1 tokens; the token after the earlier occurrence, d, is forbidden
    """
    size = row.params.no_repeat_ngram_size
    assert size is not None
    if len(row.token_ids) < size:
        return []
    ids_T = torch.tensor(row.token_ids, dtype=torch.int64)
    start_N = torch.arange(len(ids_T) - size + 1)
    for back in range(1, size):
        if not len(start_N):
            break
        start_N = start_N[ids_T[start_N + size - 1 - back] == ids_T[-back]]
    repeated: list[int] = ids_T[start_N + size - 1].tolist()
    return repeated
