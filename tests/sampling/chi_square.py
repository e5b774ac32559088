"""How likely counts at least this far from what a distribution predicts are by chance (Pearson, 1900)."""

from __future__ import annotations

import torch
from torch import Tensor

# A fixed seed either passes for ever or fails for ever; a fault shows as 0.
LEAST = 1e-6


def p_value(tokens: Tensor, probs_V: Tensor) -> float:
    count_V = torch.bincount(tokens.flatten(), minlength=len(probs_V)).double()
    predicted_V = probs_V.double() / probs_V.double().sum() * tokens.numel()
    statistic = ((count_V - predicted_V) ** 2 / predicted_V).sum()
    freedom = torch.tensor((len(probs_V) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
