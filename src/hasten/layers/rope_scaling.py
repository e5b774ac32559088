"""How rotary wavelengths are stretched to reach contexts longer than those of pretraining.

Each kind turns the unscaled inverse frequencies 1 / theta^(2i/D) (float32, [D/2]) into its own. ``attention_factor`` multiplies cos
and sin. "dynamic" NTK scaling has no class: it changes nothing up to ``max_position_embeddings``, and no context is longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RotaryScaling(Protocol):
    """Frozen and hashable, so that layers of equal scaling share their tables."""

    @property
    def attention_factor(self) -> float: ...

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        """The inverse frequencies for ``powers`` = theta^(2i/D). [D/2], float32"""
        ...


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every position divided by ``factor`` (Chen et al., 2023, arXiv 2306.15595)."""

    factor: float
    attention_factor: float = 1.0

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        return 1.0 / powers / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long waves are stretched by ``factor``, short ones kept, those between are blended (Llama 3.1, arXiv 2407.21783).

    A wave is long when it fits less than ``low_freq_factor`` times into the original context, short from ``high_freq_factor``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int
    attention_factor: float = 1.0

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        kept = 1.0 / powers
        wavelengths = 2 * math.pi / kept
        share = (self.original_max_positions / wavelengths - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - share) * kept / self.factor + share * kept
        long = wavelengths > self.original_max_positions / self.low_freq_factor
        short = wavelengths < self.original_max_positions / self.high_freq_factor
        return torch.where(long, kept / self.factor, torch.where(short, kept, blended))


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023, arXiv 2309.00071): a linear ramp over the dimensions from kept to stretched waves.

    The ramp runs between the dimensions whose wave turns ``beta_fast`` and ``beta_slow`` times in the original context.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # the ends of the ramp are rounded outwards to whole dimensions

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        dim = 2 * powers.shape[0]
        low, high = self._dimension(self.beta_fast, dim, theta), self._dimension(self.beta_slow, dim, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float32, device=powers.device) - low) / (high - low)).clamp(0.0, 1.0)
        kept = 1 - ramp  # the share of the unscaled frequency
        return 1.0 / (self.factor * powers) * (1 - kept) + 1.0 / powers * kept

    def _dimension(self, turns: float, dim: int, theta: float) -> float:
        """The (fractional) dimension pair whose wave turns that often in the original context."""
        return dim * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """0.1 ln(factor) + 1 (equation 22 of the paper), or the ratio of two of them when a configuration names both."""

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)
