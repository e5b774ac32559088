"""``Quality``: the quality metrics reported beside a speed, with their intervals. Plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.quality.divergence import Divergence
from hasten.quality.intervals import Interval, mean_interval
from hasten.quality.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A candidate against a reference, teacher-forced on the same text. Divergence in nats per token.

    Standard errors and intervals treat windows as independent, because the tokens of one window are not; a single window has none.
    Intervals are two-sided, 95 %, by Student's t distribution with one degree of freedom less than there are windows.
    """

    num_tokens: int  # predicted tokens
    num_windows: int
    num_bytes: int | None  # of the predicted text; None for token ids without a text
    kl_mean: float  # KL(reference || candidate)
    kl_standard_error: float | None
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float  # share of positions where both have the same most likely token
    top1_standard_error: float | None
    reference_perplexity: float
    candidate_perplexity: float
    reference_nll_standard_error: float | None  # of the mean negative log-likelihood, the logarithm of the perplexity
    candidate_nll_standard_error: float | None
    nll_difference_standard_error: float | None  # of candidate minus reference, token by token
    reference_bits_per_byte: float | None
    candidate_bits_per_byte: float | None

    @property
    def kl_interval(self) -> Interval | None:
        interval = mean_interval(self.kl_mean, self.kl_standard_error, self.num_windows)
        return interval and (max(0.0, interval[0]), interval[1])

    @property
    def kl_upper_bound(self) -> float | None:
        """The upper end of ``kl_interval``, which a limit of the KL divergence is held against."""
        return None if self.kl_interval is None else self.kl_interval[1]

    @property
    def reference_perplexity_interval(self) -> Interval | None:
        return self._exp_interval(self.reference_perplexity, self.reference_nll_standard_error)

    @property
    def candidate_perplexity_interval(self) -> Interval | None:
        return self._exp_interval(self.candidate_perplexity, self.candidate_nll_standard_error)

    @property
    def perplexity_ratio(self) -> float:
        """The candidate's perplexity over the reference's."""
        return self.candidate_perplexity / self.reference_perplexity

    @property
    def perplexity_ratio_interval(self) -> Interval | None:
        """It is narrow where the perplexities' own intervals are wide, because both sides read the same text."""
        return self._exp_interval(self.perplexity_ratio, self.nll_difference_standard_error)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the properties as JSON has them: numbers that are not finite are None."""
        values = dataclasses.asdict(self) | {name: getattr(self, name) for name in _PROPERTIES}
        return {name: _json_value(value) for name, value in values.items()}

    def _exp_interval(self, value: float, standard_error: float | None) -> Interval | None:
        """Return the interval of a value whose logarithm has this standard error."""
        # The ratio to a perplexity of infinity, of a broken reference, is 0.
        interval = mean_interval(math.log(value) if value else -math.inf, standard_error, self.num_windows)
        return interval and (_exp(interval[0]), _exp(interval[1]))


_PROPERTIES = tuple(name for name, value in vars(Quality).items() if isinstance(value, property))


def summarize(windows: Sequence[Window], parts: Sequence[Divergence]) -> Quality:
    """Return the metrics over all windows; ``parts[w]`` has the positions of window w."""
    total = Divergence.join(list(parts))
    sizes = [window.num_bytes for window in windows if window.num_bytes is not None]
    num_bytes = sum(sizes) if len(sizes) == len(windows) else None

    def bits_per_byte(nll_R: Tensor) -> float | None:
        return float(nll_R.sum()) / math.log(2) / num_bytes if num_bytes else None

    ordered_R = total.kl_R.sort().values
    return Quality(
        num_tokens=len(ordered_R),
        num_windows=len(windows),
        num_bytes=num_bytes,
        kl_mean=float(total.kl_R.mean()),
        kl_standard_error=standard_error([part.kl_R for part in parts]),
        kl_median=_nearest_rank(ordered_R, 50),
        kl_p99=_nearest_rank(ordered_R, 99),
        kl_max=float(ordered_R[-1]),
        top1_agreement=float(total.agrees_R.double().mean()),
        top1_standard_error=standard_error([part.agrees_R.double() for part in parts]),
        reference_perplexity=float(total.reference_nll_R.mean().exp()),
        candidate_perplexity=float(total.candidate_nll_R.mean().exp()),
        reference_nll_standard_error=standard_error([part.reference_nll_R for part in parts]),
        candidate_nll_standard_error=standard_error([part.candidate_nll_R for part in parts]),
        nll_difference_standard_error=standard_error([part.candidate_nll_R - part.reference_nll_R for part in parts]),
        reference_bits_per_byte=bits_per_byte(total.reference_nll_R),
        candidate_bits_per_byte=bits_per_byte(total.candidate_nll_R),
    )


def standard_error(clusters: Sequence[Tensor]) -> float | None:
    """Return the standard error of the mean over independent clusters; None for fewer than two.

    The ratio estimator of Cochran, 1977.
    """
    num_clusters = len(clusters)
    if num_clusters < 2:
        return None
    values = torch.cat(list(clusters))
    mean = values.mean()
    deviations = torch.stack([(cluster - mean).sum() for cluster in clusters])
    return float((deviations.square().sum() * num_clusters / (num_clusters - 1)).sqrt() / len(values))


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(end) for end in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # a broken model on two windows
        return math.inf


def _nearest_rank(ordered_R: Tensor, percent: int) -> float:
    return float(ordered_R[-(-percent * len(ordered_R) // 100) - 1])
