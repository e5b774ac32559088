"""``LayerContext``: what every module of one decoder is built with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hasten.layers.formats.base import WeightFormatFactory
from hasten.ops.base import Ops


@dataclass(frozen=True, slots=True)
class LayerContext:
    """``dtype`` is for norms, biases and the hidden state; matrices have the dtype of their format."""

    ops: Ops
    formats: WeightFormatFactory
    dtype: torch.dtype
    device: torch.device | str = "cpu"

    def vector(self, size: int) -> nn.Parameter:
        """Return a parameter [size], allocated but not initialised."""
        return nn.Parameter(torch.empty(size, dtype=self.dtype, device=self.device), requires_grad=False)
