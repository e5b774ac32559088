"""``DecoderSpec``: a complete decoder as data."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.layers.rotary import RotarySpec
from hasten.layers.spec import LayerSpec, NormSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    model_type: str  # as in config.json
    vocab_size: int
    hidden_size: int
    max_positions: int  # the longest context
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    tie_word_embeddings: bool  # lm_head is the token embedding
    learned_positions: bool = False  # a learned row per position is added to the embedding

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def rotary_specs(self) -> tuple[RotarySpec, ...]:
        """The distinct rotary specs, in order of first use."""
        specs = (layer.attention.rotary for layer in self.layers)
        return tuple(dict.fromkeys(spec for spec in specs if spec is not None))
