"""Rotary position embedding (RoFormer, Su et al., 2021): settings, context extension, cos and sin.

A scaling turns theta^(2i/D) into inverse frequencies. "dynamic" NTK scaling needs no class: it changes nothing up to
``max_position_embeddings``, and no context is longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

CosSin = tuple[Tensor, Tensor]  # [T, D] each, float32; columns i and i + D/2 are equal


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: positions are divided by ``factor`` (Chen et al., 2023, arXiv 2306.15595)."""

    factor: float
    attention_factor: float = 1.0

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        return 1.0 / powers / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long waves are stretched by ``factor``, short ones stay (Llama 3.1, arXiv 2407.21783).

    Those between are blended.
    A long wave fits less than ``low_freq_factor`` times into the original context, a short one more than ``high_freq_factor``.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int
    attention_factor: float = 1.0

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        unscaled = 1.0 / powers
        wavelengths = 2 * math.pi / unscaled
        smooth = (self.original_max_positions / wavelengths - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blended = (1 - smooth) * unscaled / self.factor + smooth * unscaled
        long = wavelengths > self.original_max_positions / self.low_freq_factor
        short = wavelengths < self.original_max_positions / self.high_freq_factor
        return torch.where(long, unscaled / self.factor, torch.where(short, unscaled, blended))


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023, arXiv 2309.00071): a linear ramp from unscaled to stretched waves.

    The ramp runs between the dimensions whose wave turns ``beta_fast`` and ``beta_slow`` times in the original context.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # round the ends of the ramp outwards to whole dimensions

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        dim = 2 * powers.shape[0]
        low, high = self._dimension(self.beta_fast, dim, theta), self._dimension(self.beta_slow, dim, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float32, device=powers.device) - low) / (high - low)).clamp(0.0, 1.0)
        unscaled_share = 1 - ramp
        return 1.0 / (self.factor * powers) * (1 - unscaled_share) + 1.0 / powers * unscaled_share

    def _dimension(self, num_turns: float, dim: int, theta: float) -> float:
        """The (fractional) dimension pair whose wave turns ``num_turns`` times in the original context."""
        return dim * math.log(self.original_max_positions / (num_turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True, slots=True)
class FrequencyFactors:
    """Each inverse frequency is divided by its own factor.

    GGUF files store the scaling of Llama 3.1 as such factors (``rope_freqs``).
    """

    factors: tuple[float, ...]  # [D/2]
    attention_factor: float = 1.0

    def scale(self, powers: Tensor, theta: float) -> Tensor:
        return 1.0 / powers / torch.tensor(self.factors, dtype=torch.float32, device=powers.device)


RotaryScaling = LinearScaling | Llama3Scaling | YarnScaling | FrequencyFactors


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """Return 0.1 ln(factor) + 1 (equation 22 of YaRN), or the ratio of two such terms with ``mscale``."""

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """Rotary embedding of the full head: ``dim`` is the head dim, ``theta`` the base of the wavelengths."""

    theta: float
    dim: int
    scaling: RotaryScaling | None = None

    @property
    def attention_factor(self) -> float:
        """Multiplies cos and sin."""
        return 1.0 if self.scaling is None else self.scaling.attention_factor

    def inverse_frequencies(self, device: torch.device | str = "cpu") -> Tensor:
        """Radians per position of each dimension pair. [D/2], float32"""
        # Computed on the CPU for every device: arithmetic on the meta device imports torch._dynamo and sympy, a second of start-up.
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device="cpu") / self.dim
        powers = self.theta**exponents
        frequencies = 1.0 / powers if self.scaling is None else self.scaling.scale(powers, self.theta)
        return frequencies.to(device)


class RotaryTables:
    """The inverse frequencies of a decoder's distinct rotary specs. Angles are always float32."""

    def __init__(self, specs: Iterable[RotarySpec], device: torch.device | str = "cpu") -> None:
        self.inverse_frequencies = {spec: spec.inverse_frequencies(device) for spec in specs}  # [D/2] each, float32

    def at(self, positions_T: Tensor) -> dict[RotarySpec, CosSin]:
        """Return cos and sin of every spec at these positions. Call it once per step, not per layer."""
        tables: dict[RotarySpec, CosSin] = {}
        for spec, frequencies in self.inverse_frequencies.items():
            angles = positions_T[:, None].float() * frequencies
            angles_TD = torch.cat((angles, angles), dim=-1)
            tables[spec] = (angles_TD.cos() * spec.attention_factor, angles_TD.sin() * spec.attention_factor)
        return tables
