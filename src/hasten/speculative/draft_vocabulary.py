"""``DraftVocabulary``: the part of the target's vocabulary that a drafter proposes from.

Shape suffixes: R rows · D draft vocabulary · V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class DraftVocabulary:
    def __init__(self, token_ids: Tensor, vocab_size: int) -> None:
        """``token_ids`` [D], int64: the target's id of each column."""
        self._token_ids, self._vocab_size = token_ids, vocab_size
        # Reused: mapping new memory costs more than writing to it.
        self._rows_RV = torch.empty(0, vocab_size, dtype=torch.float32, device="cpu")

    def token_ids(self, columns: Tensor) -> Tensor:
        return self._token_ids[columns]

    def scatter(self, logits_RD: Tensor) -> Tensor:
        """Return logits [R, V], -inf outside the draft vocabulary. Valid until the next call."""
        if len(self._rows_RV) < len(logits_RD):
            with torch.inference_mode(False):  # later calls write to it in any mode
                self._rows_RV = torch.full((len(logits_RD), self._vocab_size), -math.inf, dtype=torch.float32, device="cpu")
        rows_RV = self._rows_RV[: len(logits_RD)]
        return rows_RV.index_copy_(1, self._token_ids, logits_RD)
