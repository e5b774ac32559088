"""Masks tokens that would repeat an n-gram of the prompt or the output.

Paulus et al., 2017, arXiv 1705.04304.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import token_index


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    def applies(self, params: SamplingParams) -> bool:
        return params.no_repeat_ngram_size is not None

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        logits_RV[token_index([_repeating_tokens(row) for row in rows], logits_RV)] = -torch.inf
        return logits_RV


def _repeating_tokens(row: SamplingRow) -> list[int]:
    """Return the tokens that follow an earlier occurrence of the last n - 1 tokens.

    ::

        token_ids   a b c d e a b c     n = 4
                    ^start      ^ the last n - 1 tokens; d follows their earlier occurrence and is masked
    """
    size = row.params.no_repeat_ngram_size
    assert size is not None
    if len(row.token_ids) < size:
        return []
    ids_T = torch.tensor(row.token_ids, dtype=torch.int64, device="cpu")
    start_N = torch.arange(len(ids_T) - size + 1, dtype=torch.int64, device="cpu")
    for back in range(1, size):
        if not len(start_N):
            break
        start_N = start_N[ids_T[start_N + size - 1 - back] == ids_T[-back]]
    tokens: list[int] = ids_T[start_N + size - 1].tolist()
    return tokens
