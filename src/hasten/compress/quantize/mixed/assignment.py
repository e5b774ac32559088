"""``Assignment``: the bits of each layer that a search found, with what it measured. Plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.compress.quantize.mixed.kl_estimate import KlEstimate


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """A layer with some bits, all other layers unquantised."""

    bits: int
    num_bytes: int  # of the layer in the file
    kl: KlEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBytes:
    """Sizes in the file that is written."""

    layers: Sequence[Mapping[int, int]]  # of each layer: bits -> bytes; 16 bits leave it as it is
    others: int  # embedding, final norm, lm_head

    def total(self, bits: Sequence[int]) -> int:
        """Return the bytes of the model whose layers have ``bits``."""
        return self.others + sum(layer[number] for layer, number in zip(self.layers, bits, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The KL is measured on text that the search did not use."""

    bits: tuple[int, ...]  # of each layer
    num_bytes: int  # of the model's file
    kl: float  # nats per token
    kl_upper: float  # the limit that the upper bound of other text keeps in 95 of 100 cases
    predicted_kl: float  # the sum of the layers' own
    layers: tuple[tuple[LayerChoice, ...], ...]  # the sensitivity of each layer, by rising bits
    num_evaluations: int

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
