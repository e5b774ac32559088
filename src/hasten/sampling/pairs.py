"""Token ids of several rows as flat (row, token) pairs, so that one indexing call serves rows of different lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pair i is token ``token_N[i]`` of row ``row_N[i]``, both int64."""

    row_N: Tensor
    token_N: Tensor

    @classmethod
    def of(cls, token_ids: Iterable[Sequence[int]], logits_RV: Tensor) -> Pairs:
        """One iterable of ids per row. Ids that the vocabulary does not have are left out: they can never be chosen."""
        lists = list(token_ids)
        lengths = torch.tensor([len(ids) for ids in lists], dtype=torch.int64)
        token_N = torch.tensor(list(chain.from_iterable(lists)), dtype=torch.int64)
        row_N = torch.repeat_interleave(torch.arange(len(lists)), lengths)
        known_N = (token_N >= 0) & (token_N < logits_RV.shape[1])
        if not bool(known_N.all()):
            row_N, token_N = row_N[known_N], token_N[known_N]
        return cls(row_N.to(logits_RV.device), token_N.to(logits_RV.device))

    def counted(self, num_tokens: int) -> tuple[Pairs, Tensor]:
        """The distinct pairs, and how often each occurs [N]. ``num_tokens`` is the size of the vocabulary."""
        key_N, count_N = torch.unique(self.row_N * num_tokens + self.token_N, return_counts=True)
        return Pairs(key_N // num_tokens, key_N % num_tokens), count_N

    def forbid(self, logits_RV: Tensor) -> Tensor:
        """Writes -inf at every pair. Returns the argument."""
        logits_RV[self.row_N, self.token_N] = -torch.inf
        return logits_RV
