"""``KlEstimate``: a mean KL divergence per token, and the bound that the KL of other text keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.quality.intervals import student_t
from hasten.quality.quality import standard_error

ERROR_RATE = 0.05  # share of texts on which a bound may fail


@dataclass(frozen=True, slots=True)
class KlEstimate:
    """In nats per token."""

    mean: float
    standard_error: float  # over clusters, which count as independent
    num_clusters: int

    @classmethod
    def of_clusters(cls, clusters: Sequence[Tensor]) -> KlEstimate:
        """Return the estimate from the KL at each token of each cluster, at least two."""
        error = standard_error(clusters)
        assert error is not None, "a single cluster has no standard error"
        return cls(float(torch.cat(list(clusters)).mean()), error, len(clusters))

    def upper(self, error_rate: float = ERROR_RATE) -> float:
        """Return the limit that another text's own upper bound keeps, save in a share of ``error_rate`` of texts.

        The other text has as many clusters of the same kind. Its mean m' has the standard error s of this mean m, so m' - m has
        sqrt(2) s. Its own upper bound, ``Quality.kl_upper_bound``, is m' + t s with the two-sided t of 95 %. With the one-sided t'
        of the error rate, m' - m is at most t' sqrt(2) s, and the limit is m + (t + sqrt(2) t') s.
        """
        own, difference = student_t(self.num_clusters - 1), student_t(self.num_clusters - 1, 1 - error_rate, sides=1)
        return self.mean + (own + math.sqrt(2) * difference) * self.standard_error
