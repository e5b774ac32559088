"""Who chooses the token of a row once masks, bias and penalties are done, and the way to do it that works everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from hasten.sampling.chain import Chain
from hasten.sampling.draw import draw
from hasten.sampling.row import SamplingRow
from hasten.sampling.select_rows import select_rows
from hasten.sampling.topk import argmax_tokens


class TokenSelector(Protocol):
    """All choosers choose the same tokens."""

    @property
    def chain(self) -> Chain:
        """Whose warpers it applies."""
        ...

    def choose(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        """The token of each row of processed logits [R, V], float32, which are left alone; there is at least one row.

        Greedy rows take the largest logit, the lowest token of equals; the others are warped and win the gumbel_argmax against their noise
        (``gumbel_argmax``), for which they need a seed. None where the row holds NaN or +inf, or its settings leave no rows_are_finite number.
        """
        ...


@dataclass(frozen=True, slots=True)
class TorchTokenSelector:
    """In numpy and torch, for logits on any device."""

    chain: Chain = field(default_factory=Chain)

    def choose(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        token_ids = argmax_tokens(logits_RV)
        sampling = [i for i, row in enumerate(rows) if token_ids[i] is not None and not row.params.greedy]
        if sampling:
            drawn = draw(select_rows(logits_RV, sampling), [rows[i] for i in sampling], self.chain)
            for i, token_id in zip(sampling, drawn, strict=True):
                token_ids[i] = token_id
        return token_ids
