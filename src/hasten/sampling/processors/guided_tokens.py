"""Masks the tokens that a request's guide does not allow: structured output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.core.errors import HastenError
from hasten.core.sampling_params import SamplingParams
from hasten.sampling.guides.base import MaskWords, TokenGuide
from hasten.sampling.row import SamplingRow


class GuidedTokens:
    """The processor for requests with a guide. A row without one, of a drafter, is not masked."""

    def applies(self, params: SamplingParams) -> bool:
        return params.is_guided

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        for logits_V, row in zip(logits_RV, rows, strict=True):
            if row.guide is not None:
                try:
                    _guide(row.guide, row.output_token_ids, logits_V)
                except HastenError:  # ``failure`` of the guide says why; an exception would sample all other rows again
                    logits_V.fill_(-torch.inf)
        return logits_RV


def _guide(guide: TokenGuide, token_ids: Sequence[int], logits_V: Tensor) -> None:
    if forced := guide.forced_tokens(token_ids):
        _keep_only(logits_V, np.array(forced[:1]))
    elif (mask_W := guide.mask(token_ids)) is not None:
        _apply(mask_W, logits_V)


def _apply(mask_W: MaskWords, logits_V: Tensor) -> None:
    is_allowed_V = allowed_tokens(mask_W, len(logits_V))
    if np.count_nonzero(is_allowed_V) < len(logits_V) // 2:
        _keep_only(logits_V, np.flatnonzero(is_allowed_V))
    else:
        _mask_out(logits_V, np.flatnonzero(~is_allowed_V))


def _keep_only(logits_V: Tensor, token_ids: NDArray[np.intp]) -> None:
    if logits_V.device.type == "cpu":
        # NumPy takes one thread. Those of PyTorch spin afterwards and slow the kernels' own.
        values_V = logits_V.numpy()
        kept = values_V[token_ids]
        values_V.fill(-np.inf)
        values_V[token_ids] = kept
        return
    index = torch.from_numpy(token_ids).to(logits_V.device)
    kept_N = logits_V[index]
    logits_V.fill_(-torch.inf)
    logits_V[index] = kept_N


def _mask_out(logits_V: Tensor, token_ids: NDArray[np.intp]) -> None:
    if logits_V.device.type == "cpu":
        logits_V.numpy()[token_ids] = -np.inf
    else:
        logits_V[torch.from_numpy(token_ids).to(logits_V.device)] = -torch.inf


def allowed_tokens(mask_W: MaskWords, vocab_size: int) -> NDArray[np.bool_]:
    """Return whether each token is allowed [V]."""
    # NumPy lists the true ones of booleans ten times as fast as those of other numbers.
    return np.unpackbits(mask_W.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
