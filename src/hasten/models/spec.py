"""``DecoderSpec``: a whole decoder as data."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.layers.spec import LayerSpec, NormSpec, RotarySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    family: str  # the ``model_type`` it was read from
    vocab_size: int
    hidden_size: int
    max_positions: int  # the longest context
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tied: bool  # the vocabulary projection is the embedding
    learned_positions: bool = False  # a learned row per position is added to the embedding

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def rotary_specs(self) -> tuple[RotarySpec, ...]:
        """The distinct ones, in order of first use."""
        found = (layer.attention.rotary for layer in self.layers)
        return tuple(dict.fromkeys(rotary for rotary in found if rotary is not None))
