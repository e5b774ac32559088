"""Masks the last token of each bad word where the tokens before it are the end of the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import token_index


@dataclass(frozen=True, slots=True)
class BadWords:
    """A bad word that is an end-of-sequence token alone is ignored, as in transformers."""

    def applies(self, params: SamplingParams) -> bool:
        return bool(params.bad_words_ids)

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        logits_RV[token_index([_completing_tokens(row) for row in rows], logits_RV)] = -torch.inf
        return logits_RV


def _completing_tokens(row: SamplingRow) -> list[int]:
    """Return the tokens that would complete a bad word now."""
    words = row.params.bad_words_ids
    end = tuple(row.token_ids[max(0, row.position - max(map(len, words)) + 1) :])
    return [
        word[-1]
        for word in words
        if end[len(end) - len(word) + 1 :] == word[:-1] and not (len(word) == 1 and word[0] in row.eos_token_ids)
    ]
