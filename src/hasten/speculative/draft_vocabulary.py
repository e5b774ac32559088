"""``DraftVocabulary``: the tokens that a guesser guesses from, where these are not all of the vocabulary.

Shape suffixes: R rows of logits · D tokens guessed from · V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DraftVocabulary:
    def __init__(self, token_ids: Tensor, vocab_size: int) -> None:
        """``token_ids`` [D], int64."""
        self._token_ids, self._vocab_size = token_ids, vocab_size
        self._rows_RV = torch.empty(0, vocab_size)  # of earlier calls: mapping memory anew costs more than writing it

    def token_ids(self, columns: Tensor) -> Tensor:
        """Of the logits."""
        return self._token_ids[columns]

    def spread(self, logits_RD: Tensor) -> Tensor:
        """The logits of all tokens, those that cannot be guessed at -inf. [R, V], valid until the next call"""
        if len(self._rows_RV) < len(logits_RD):
            self._rows_RV = torch.full((len(logits_RD), self._vocab_size), -math.inf)
        rows_RV = self._rows_RV[: len(logits_RD)]
        return rows_RV.index_copy_(1, self._token_ids, logits_RD)
