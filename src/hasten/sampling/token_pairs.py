"""Token ids of several rows as flat (row, token) pairs, so that one indexing call serves rows of different lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """Pair i is token ``token_N[i]`` of row ``row_N[i]``, both int64."""

    row_N: Tensor
    token_N: Tensor

    @classmethod
    def of(cls, token_ids: Iterable[Sequence[int]], logits_RV: Tensor) -> TokenPairs:
        """One iterable of ids per row. Ids that the vocabulary does not have are left out: they can never be chosen."""
        return cls.counted(token_ids, None, logits_RV)[0]

    @classmethod
    def counted(
        cls, token_ids: Iterable[Sequence[int]], counts: Iterable[Sequence[int]] | None, logits_RV: Tensor
    ) -> tuple[TokenPairs, Tensor]:
        """The same, and what ``counts`` has for each pair [N]; without counts, the token again."""
        lists = list(token_ids)
        token_N = _joined(lists)
        count_N = token_N if counts is None else _joined(list(counts))
        row_N = np.repeat(np.arange(len(lists)), [len(ids) for ids in lists])
        known_N = (token_N >= 0) & (token_N < logits_RV.shape[1])
        if not known_N.all():
            row_N, token_N, count_N = row_N[known_N], token_N[known_N], count_N[known_N]
        row, token, count = (torch.from_numpy(values).to(logits_RV.device) for values in (row_N, token_N, count_N))
        return cls(row, token), count

    def forbid(self, logits_RV: Tensor) -> Tensor:
        """Writes -inf at every pair. Returns the argument."""
        logits_RV[self.row_N, self.token_N] = -torch.inf
        return logits_RV


def _joined(lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Copies; an ``array`` is read as it lies in memory, a list number by number."""
    return np.concatenate([np.array(ids, dtype=np.int64) for ids in lists])
