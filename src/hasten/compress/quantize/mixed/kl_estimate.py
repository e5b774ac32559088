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
        """Return the limit that another text's own upper bound keeps, except on few texts.

        ``error_rate`` is the share of texts that exceed it. The other text has as many clusters of the same kind. Its mean m' has
        the standard error s of this mean m, and m' - m has sqrt(2) s. Its own upper bound, ``Quality.kl_upper_bound``, is m' + t s'
        with the two-sided t of 95 %. If s' were s, the limit would be m + (t + sqrt(2) t') s with the one-sided t' of the error
        rate. But s' - s varies, too: for normal clusters by sqrt(2) s / sqrt(2 d), d degrees of freedom, apart from the means. The
        variances of m' - m and t (s' - s) add up.

        Clusters whose KL is skewed, as between texts of very different kinds, exceed the limit more often.
        """
        degrees = self.num_clusters - 1
        own, difference = student_t(degrees), student_t(degrees, 1 - error_rate, sides=1)
        spread = math.sqrt(2 * (1 + own**2 / (2 * degrees)))  # of the difference of both upper bounds, in standard errors
        return self.mean + (own + spread * difference) * self.standard_error
