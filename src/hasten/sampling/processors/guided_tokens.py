"""Masks the tokens that a request's guide does not allow: structured output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.guides.base import MaskWords
from hasten.sampling.row import SamplingRow


class GuidedTokens:
    """The processor for requests with a guide. A row without one, of a drafter, is not masked."""

    def applies(self, params: SamplingParams) -> bool:
        return params.is_guided

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Write to the argument and return it."""
        for logits_V, row in zip(logits_RV, rows, strict=True):
            if row.guide is not None:
                token_ids = row.output_token_ids
                if forced := row.guide.forced_tokens(token_ids):
                    _keep_only(logits_V, forced[0])
                elif (mask_W := row.guide.mask(token_ids)) is not None:
                    logits_V[~allowed_tokens(mask_W, len(logits_V)).to(logits_V.device)] = -torch.inf
        return logits_RV


def _keep_only(logits_V: Tensor, token_id: int) -> None:
    logit = logits_V[token_id].clone()
    logits_V.fill_(-torch.inf)
    logits_V[token_id] = logit


def allowed_tokens(mask_W: MaskWords, vocab_size: int) -> Tensor:
    """Return whether each token is allowed [V]."""
    bits = np.unpackbits(mask_W.view(np.uint8), count=vocab_size, bitorder="little")
    return torch.from_numpy(bits != 0)
