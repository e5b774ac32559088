"""The Gumbel-max gumbel_argmax: each token's warped logit plus its noise, largest sum wins. Noise is drawn only for tokens still in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.sampling.noise import gumbel, gumbel_of, noise_bits, streams
from hasten.sampling.row import SamplingRow

# Up to this share of the vocabulary it is cheaper to gather the tokens that are left than to draw noise for all.
SPARSE_SHARE = 0.125
# Logits handled at once: what fits the second-level cache.
CHUNK = 1 << 18


def gumbel_argmax(warped_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
    """The winner of each row, the lowest id on ties; None for a row whose largest logit is not finite. Every row has a seed."""
    seeds = [row.params.seed for row in rows]
    assert None not in seeds, "the engine gives every sampling request a seed"
    keys = (seeds, [row.sequence_index for row in rows], [row.position for row in rows])
    key_3R = torch.tensor(keys, dtype=torch.int64, device=warped_RV.device)
    step = max(1, CHUNK // warped_RV.shape[1])
    winners: list[int | None] = []
    for begin in range(0, len(rows), step):
        winners += _winners(warped_RV[begin : begin + step], key_3R[:, begin : begin + step])
    return winners


def _winners(warped_RV: Tensor, key_3R: Tensor) -> list[int | None]:
    left_RV = warped_RV > -torch.inf
    sparse = int(left_RV.count_nonzero()) <= SPARSE_SHARE * warped_RV.numel()
    sum_R, winner_R = _among(left_RV, warped_RV, key_3R) if sparse else _all(warped_RV, key_3R)
    return [token if ok else None for token, ok in zip(winner_R.tolist(), sum_R.isfinite().tolist(), strict=True)]


def _all(warped_RV: Tensor, key_3R: Tensor) -> tuple[Tensor, Tensor]:
    """Largest sum and winner of each row [R]."""
    seed_R, sequence_R, position_R = key_3R
    token_V = torch.arange(warped_RV.shape[1], device=warped_RV.device)
    sum_RV = gumbel(seed_R, sequence_R, position_R, token_V).add_(warped_RV)
    sum_R, winner_R = sum_RV.max(dim=1)
    return sum_R, winner_R


def _among(left_RV: Tensor, warped_RV: Tensor, key_3R: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the marked tokens alone; a row without any has the sum -inf."""
    seed_R, sequence_R, position_R = key_3R
    row_N, token_N = left_RV.nonzero(as_tuple=True)
    sum_N = gumbel_of(noise_bits(streams(seed_R, sequence_R, position_R)[row_N], token_N)).add_(warped_RV[row_N, token_N])
    sum_R = torch.full((len(warped_RV),), -torch.inf, dtype=torch.float64, device=warped_RV.device)
    sum_R.scatter_reduce_(0, row_N, sum_N, "amax")
    won_N = sum_N == sum_R[row_N]
    winner_R = torch.zeros_like(sum_R, dtype=torch.int64)
    winner_R.scatter_reduce_(0, row_N[won_N], token_N[won_N], "amin", include_self=False)
    return sum_R, winner_R
