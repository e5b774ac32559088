"""The likeliest tokens of each row, and a bound on all the others: enough to draw most tokens without a sort of the vocabulary.

::

    value   9.1  8.7  8.7  5.0  4.9 | 4.1 ...        floor: no token that is not listed is above it
            └──────── listed ──────┘ └─ vocabulary

A warper that knows how to (``base.Shortening``) removes tokens from the list instead of from the vocabulary. Where the list alone
cannot tell which tokens stay, it says so, and the row is warped as a whole after all. It works in numpy, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasten.sampling.topk import LOWEST, Flags, Floats, Ints, likeliest

Doubles = NDArray[np.float64]


@dataclass(slots=True)
class Shortlist:
    """Mutable: one chain of warpers works on it. Values start as processed logits [R, V] and are warped in place."""

    logits_RV: Tensor  # what the list was made from
    token_RK: Ints  # likeliest first, the lower id first on ties
    value_RK: Floats  # -inf: removed, or no token (its id is then the likeliest one's)
    floor_R: Floats  # no token that is not listed has a value above this
    open_R: Flags  # whether tokens that are not listed may still be chosen
    decided_R: Flags  # False: the list could not tell, the row's values mean nothing
    scale_R: Floats  # what the logits have been divided by

    @classmethod
    def of(cls, logits_RV: Tensor, size: int) -> Shortlist:
        """At least ``size`` tokens of each row, or all that are above -inf. ``size * CLASSES`` is at most the vocabulary."""
        token_RK, value_RK, floor_R, listed_R = likeliest(logits_RV, size)
        return cls(logits_RV, token_RK, value_RK, floor_R, floor_R > LOWEST, listed_R, np.ones(len(floor_R), np.float32))

    def relative(self) -> Floats:
        """Values less the row's largest one [R, K], rounded as softmax does it. The largest is finite in decided rows."""
        top_R1 = self.value_RK[:, :1]
        return self.value_RK - np.where(np.isfinite(top_R1), top_R1, np.float32(0))

    def remove(self, removed_RK: Flags, closed_R: Flags) -> None:
        """``closed_R``: rows whose unlisted tokens are removed as well."""
        self.value_RK[removed_RK] = -np.inf
        self.open_R &= ~closed_R

    def unlisted_mass(self) -> Doubles:
        """The sum of exp(value - largest value) over the tokens that are not listed [R], within 128 units of float32.

        0 where unlisted tokens are gone.
        """
        rows = np.flatnonzero(self.open_R & self.decided_R)
        mass_R = np.zeros(len(self.open_R))
        if not len(rows):
            return mass_R
        whole = len(rows) == len(mass_R)
        logits_RV = self.logits_RV if whole else self.logits_RV[torch.from_numpy(rows)]
        scale_R1 = torch.from_numpy(self.scale_R[rows]).unsqueeze(1)
        exp_RV = (logits_RV / scale_R1).sub_(torch.from_numpy(self.value_RK[rows, :1])).exp_()
        exp_RV.scatter_(1, torch.from_numpy(self.token_RK[rows]), 0.0)
        mass_R[rows] = exp_RV.sum(dim=1).numpy()
        return mass_R
