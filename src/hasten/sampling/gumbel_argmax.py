"""Sampling by the Gumbel-max trick: the token with the largest sum of warped logit and noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.sampling.noise import gumbel_from_bits, noise_bits, streams
from hasten.sampling.row import SamplingRow

# Up to this share of unmasked tokens, gathering them is cheaper than noise for the full vocabulary.
SPARSE_SHARE = 0.125
# Logits per chunk: what fits the second-level cache.
CHUNK = 1 << 18


def gumbel_argmax(warped_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
    """Return the sampled token of each row; None for a row whose largest logit is not finite.

    The lowest id of a tie wins. Every row needs a seed.
    """
    seeds = [row.params.seed for row in rows]
    assert None not in seeds, "the engine gives every sampling request a seed"
    keys = (seeds, [row.sequence_index for row in rows], [row.position for row in rows])
    stream_R = streams(*torch.tensor(keys, dtype=torch.int64, device=warped_RV.device))
    step = max(1, CHUNK // warped_RV.shape[1])
    token_ids: list[int | None] = []
    for begin in range(0, len(rows), step):
        token_ids += _argmax_of_chunk(warped_RV[begin : begin + step], stream_R[begin : begin + step])
    return token_ids


def _argmax_of_chunk(warped_RV: Tensor, stream_R: Tensor) -> list[int | None]:
    unmasked_RV = warped_RV > -torch.inf
    if int(unmasked_RV.count_nonzero()) <= SPARSE_SHARE * warped_RV.numel():
        sum_R, token_R = _sparse_argmax(unmasked_RV, warped_RV, stream_R)
    else:
        token_V = torch.arange(warped_RV.shape[1], dtype=torch.int64, device=warped_RV.device)
        sum_R, token_R = gumbel_from_bits(noise_bits(stream_R.unsqueeze(1), token_V)).add_(warped_RV).max(dim=1)
    return [token if finite else None for token, finite in zip(token_R.tolist(), sum_R.isfinite().tolist(), strict=True)]


def _sparse_argmax(unmasked_RV: Tensor, warped_RV: Tensor, stream_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's largest sum and its token [R], from unmasked tokens alone; -inf without any."""
    row_N, token_N = unmasked_RV.nonzero(as_tuple=True)
    sum_N = gumbel_from_bits(noise_bits(stream_R[row_N], token_N)).add_(warped_RV[row_N, token_N])
    sum_R = torch.full((len(warped_RV),), -torch.inf, dtype=torch.float64, device=warped_RV.device)
    sum_R.scatter_reduce_(0, row_N, sum_N, "amax")
    is_best_N = sum_N == sum_R[row_N]
    token_R = torch.zeros_like(sum_R, dtype=torch.int64)
    token_R.scatter_reduce_(0, row_N[is_best_N], token_N[is_best_N], "amin", include_self=False)
    return sum_R, token_R
