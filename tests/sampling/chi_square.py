"""The p-value of Pearson's chi-squared test (Pearson, 1900)."""

from __future__ import annotations

import torch
from torch import Tensor

# With a fixed seed a test either always passes or always fails; a fault gives a p-value near 0.
MIN_P_VALUE = 1e-6


def p_value(tokens: Tensor, probs_V: Tensor) -> float:
    """Return the probability of counts at least this far from the expected ones."""
    count_V = torch.bincount(tokens.flatten(), minlength=len(probs_V)).double()
    expected_V = probs_V.double() / probs_V.double().sum() * tokens.numel()
    statistic = ((count_V - expected_V) ** 2 / expected_V).sum()
    half_degrees_of_freedom = torch.tensor((len(probs_V) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_degrees_of_freedom, statistic / 2))
