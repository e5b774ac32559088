"""``KlEstimate``: a mean KL divergence per token, and the bound that the KL of other text keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from hasten.quality.quality import standard_error

CONFIDENCE = 0.95
MIN_WINDOWS = 4  # fewer tell too little about their spread


@dataclass(frozen=True, slots=True)
class KlEstimate:
    """In nats per token."""

    mean: float
    standard_error: float  # over windows, which count as independent
    num_windows: int

    @classmethod
    def of_windows(cls, windows: Sequence[Tensor]) -> KlEstimate:
        """Return the estimate from the KL at each token of each window, at least ``MIN_WINDOWS``."""
        error = standard_error(windows)
        assert error is not None, "a single window has no standard error"
        return cls(float(torch.cat(list(windows)).mean()), error, len(windows))

    @property
    def upper(self) -> float:
        """The bound that the mean KL of another text of as many windows keeps in 95 of 100 cases.

        The other text's mean varies as this one does, hence the factor of sqrt(2) over the bound of the expected KL.
        """
        return self.mean + math.sqrt(2) * t_quantile(CONFIDENCE, self.num_windows - 1) * self.standard_error


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t, to 1 % from 3 degrees of freedom on.

    The expansion of Abramowitz and Stegun, 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, 1))
