"""cos and sin of the rotary embedding, for the positions of one step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hasten.layers.spec import RotarySpec

CosSin = tuple[Tensor, Tensor]  # [T, D] each, float32; columns i and i + D/2 are equal


def inverse_frequencies(spec: RotarySpec, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position of each dimension pair. [D/2], float32"""
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.float32, device=device) / spec.dim
    powers = spec.theta**exponents
    return 1.0 / powers if spec.scaling is None else spec.scaling.scale(powers, spec.theta)


class RotaryTables:
    """The inverse frequencies of a decoder's distinct rotary specs. Angles are float32 whatever the weights are."""

    def __init__(self, specs: Iterable[RotarySpec], device: torch.device | str = "cpu") -> None:
        self._inverse_frequencies = {spec: inverse_frequencies(spec, device) for spec in specs}

    def frequencies(self, spec: RotarySpec) -> Tensor:
        """Radians per position of each dimension pair. [D/2], float32"""
        return self._inverse_frequencies[spec]

    def at(self, positions_T: Tensor) -> dict[RotarySpec, CosSin]:
        """cos and sin of every spec at these positions. Call it once per step, not per layer."""
        tables: dict[RotarySpec, CosSin] = {}
        for spec, frequencies in self._inverse_frequencies.items():
            angles = positions_T[:, None].float() * frequencies
            angles_TD = torch.cat((angles, angles), dim=-1)
            factor = 1.0 if spec.scaling is None else spec.scaling.attention_factor
            tables[spec] = (angles_TD.cos() * factor, angles_TD.sin() * factor)
        return tables
