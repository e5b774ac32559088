"""``Quality``: the figures that stand beside a speed, with their spread. Plain data."""

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

    Standard errors are of the mean over windows, since tokens of one window are not independent; None of a single window.
    """

    num_tokens: int  # predicted tokens
    num_windows: int
    num_bytes: int | None  # of the predicted text; None for token ids without a text
    kl_mean: float  # KL(reference || candidate)
    kl_standard_error: float | None
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float  # share of the tokens at which both hold the same token the likeliest
    top1_standard_error: float | None
    reference_perplexity: float
    candidate_perplexity: float
    reference_bits_per_byte: float | None
    candidate_bits_per_byte: float | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def summarise(windows: Sequence[Window], parts: Sequence[Divergence]) -> Quality:
    """``parts[w]`` holds the positions of window w."""
    whole = Divergence.join(list(parts))
    num_bytes = _bytes(windows)
    reference, candidate = float(whole.reference_nll_R.sum()), float(whole.candidate_nll_R.sum())
    count = len(whole.kl_R)
    ordered = whole.kl_R.sort().values
    return Quality(
        num_tokens=count,
        num_windows=len(windows),
        num_bytes=num_bytes,
        kl_mean=float(whole.kl_R.mean()),
        kl_standard_error=standard_error([part.kl_R for part in parts]),
        kl_median=_nearest_rank(ordered, 50),
        kl_p99=_nearest_rank(ordered, 99),
        kl_max=float(ordered[-1]),
        top1_agreement=float(whole.agrees_R.double().mean()),
        top1_standard_error=standard_error([part.agrees_R.double() for part in parts]),
        reference_perplexity=float(whole.reference_nll_R.mean().exp()),
        candidate_perplexity=float(whole.candidate_nll_R.mean().exp()),
        reference_bits_per_byte=reference / math.log(2) / num_bytes if num_bytes else None,
        candidate_bits_per_byte=candidate / math.log(2) / num_bytes if num_bytes else None,
    )


def standard_error(clusters: Sequence[Tensor]) -> float | None:
    """Of the mean over all values, when only the clusters are independent draws (Cochran, 1977, the ratio estimator)."""
    count = len(clusters)
    if count < 2:
        return None
    values = torch.cat(list(clusters))
    mean = values.mean()
    deviations = torch.stack([(cluster - mean).sum() for cluster in clusters])
    return float((deviations.square().sum() * count / (count - 1)).sqrt() / len(values))


def _nearest_rank(ordered: Tensor, percent: int) -> float:
    return float(ordered[-(-percent * len(ordered) // 100) - 1])


def _bytes(windows: Sequence[Window]) -> int | None:
    sizes = [window.num_bytes for window in windows]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
