"""Drops tokens less likely than a share of the likeliest one (Nguyen et al., 2024, arXiv 2407.01082)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.column import column
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist

# Roundings between the ratio of two probabilities and their comparison in float32, relative, with room to spare.
ERROR = 128 * 2.0**-24
# Below this, probabilities may leave the normal numbers of float32, and the error is not relative any more.
SMALLEST = 1e-30


@dataclass(frozen=True, slots=True)
class MinP:
    def applies(self, params: SamplingParams) -> bool:
        return params.min_p > 0

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Writes to its argument."""
        probs_RV = logits_RV.softmax(dim=1)
        least_R1 = probs_RV.amax(dim=1, keepdim=True) * column((row.params.min_p for row in rows), logits_RV)
        return logits_RV.masked_fill_(probs_RV < least_R1, -torch.inf)

    def shorten(self, listed: Shortlist, rows: Sequence[SamplingRow]) -> None:
        """The ratio of two probabilities needs no sum over the vocabulary."""
        least_R = np.array([row.params.min_p for row in rows])
        cut_R, least_R1 = least_R > 0, least_R[:, None]
        ratio_RK = np.exp(listed.relative().astype(np.float64))
        goes_RK = ratio_RK < least_R1 * (1 - ERROR)
        sure_R = (goes_RK | (ratio_RK > least_R1 * (1 + ERROR))).all(axis=1) & (least_R >= SMALLEST)
        floor_R = np.exp(np.minimum(listed.floor_R.astype(np.float64) - listed.value_RK[:, 0], 0.0))
        sure_R &= ~listed.open_R | (floor_R < least_R * (1 - ERROR))
        listed.decided_R &= sure_R | ~cut_R
        listed.remove(goes_RK & cut_R[:, None], cut_R)
