"""``Quality``: the quality metrics reported beside a speed, with their standard errors. Plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.quality.divergence import Divergence
from hasten.quality.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A candidate against a reference, teacher-forced on the same text. Divergence in nats per token.

    Standard errors treat windows as independent, because the tokens of one window are not; a single window has none.
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
    reference_bits_per_byte: float | None
    candidate_bits_per_byte: float | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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


def _nearest_rank(ordered_R: Tensor, percent: int) -> float:
    return float(ordered_R[-(-percent * len(ordered_R) // 100) - 1])
