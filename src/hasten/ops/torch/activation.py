"""Element-wise functions of the feed-forward layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) · up of the fused projection [T, 2F], gates first. [T, F]"""
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TF) * up_TF


def gelu(x: Tensor, *, tanh: bool) -> Tensor:
    """x · Φ(x) (Hendrycks & Gimpel, 2016), exact or by the tanh approximation."""
    return F.gelu(x, approximate="tanh" if tanh else "none")
