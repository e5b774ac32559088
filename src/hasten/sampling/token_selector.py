"""Token selection after masks, bias and penalties: the protocol and the PyTorch reference."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from hasten.sampling.chain import Chain
from hasten.sampling.gumbel_argmax import gumbel_argmax
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import select_rows


class TokenSelector(Protocol):
    """All token selectors return the same tokens."""

    @property
    def chain(self) -> Chain:
        """Return the chain whose warpers the selector applies."""
        ...

    def select(self, logits_RV: Tensor, rows: Sequence[SamplingRow], *, skipped: Collection[int] = frozenset()) -> list[int | None]:
        """Return the token of each row of processed logits [R, V], float32.

        The token of a ``skipped`` row has no meaning. The logits are unchanged, and there is at least one row. A greedy row takes
        the largest logit, and the lowest token id of a tie. Other rows are warped and take ``gumbel_argmax``; each needs a seed.
        The token is None if the row holds NaN or +inf, or if warping leaves no finite logit.
        """
        ...


@dataclass(frozen=True, slots=True)
class TorchTokenSelector:
    """The reference: it warps and samples from the full vocabulary, on any device."""

    chain: Chain = field(default_factory=Chain)

    def select(self, logits_RV: Tensor, rows: Sequence[SamplingRow], *, skipped: Collection[int] = frozenset()) -> list[int | None]:
        token_ids = argmax_tokens(logits_RV)
        index = [i for i, row in enumerate(rows) if token_ids[i] is not None and not row.params.greedy and i not in skipped]
        if index:
            sampling_rows = [rows[i] for i in index]
            warped_RV = self.chain.warp(select_rows(logits_RV, index), sampling_rows)
            for i, token_id in zip(index, gumbel_argmax(warped_RV, sampling_rows), strict=True):
                token_ids[i] = token_id
        return token_ids


def argmax_tokens(logits_RV: Tensor, index: Sequence[int] | None = None) -> list[int | None]:
    """Return the token of each row's largest logit; None if that logit is not finite.

    ``index``: of some of the rows. The lowest id of a tie wins. NaN counts as the largest, so this logit tells whether the row
    holds NaN or +inf.
    """
    if logits_RV.device.type == "cpu":
        # numpy takes 43 microseconds for 64 rows of 8,192 logits, torch 536.
        values_RV = logits_RV.numpy()
        if index is not None:
            tops = [(row_V, int(row_V.argmax())) for row_V in (values_RV[i] for i in index)]
            return [top if np.isfinite(row_V[top]) else None for row_V, top in tops]
        index_R = values_RV.argmax(axis=1)
        finite_R = np.isfinite(values_RV[np.arange(len(index_R)), index_R])
        token_ids, is_finite = index_R.tolist(), finite_R.tolist()
    else:
        top = (logits_RV if index is None else select_rows(logits_RV, index)).max(dim=1)
        token_ids, is_finite = top.indices.tolist(), top.values.isfinite().tolist()
    return [token_id if finite else None for token_id, finite in zip(token_ids, is_finite, strict=True)]
