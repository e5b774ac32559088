"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Turns the pair (i, i + D/2) of every head by the angle of its position (Su et al., 2021).

    ``cos_TD`` and ``sin_TD`` are float32 and repeat after D/2. Computed in float32 and rounded once, to the dtype of ``x_THD``.
    """
    left, right = x_THD.chunk(2, dim=-1)
    turned_THD = torch.cat((-right, left), dim=-1)
    return (x_THD * cos_TD[:, None] + turned_THD * sin_TD[:, None]).to(x_THD.dtype)
