"""Normalisation over the last dimension."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight (Zhang & Sennrich, 2019): float32 up to the rounding to the dtype of ``x``, then times ``weight``."""
    return F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias (Ba et al., 2016), float32 inside."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
