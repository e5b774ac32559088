"""``Shape``: the sizes of a decoder that pruning changes, the same in every layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hasten.core.errors import UnsupportedModel
from hasten.layers.spec import LayerSpec
from hasten.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    num_layers: int
    hidden_size: int
    num_heads: int  # of queries
    num_kv_heads: int
    intermediate_size: int

    @classmethod
    def of(cls, spec: DecoderSpec) -> Shape:
        """Return the sizes of a decoder. Raises ``UnsupportedModel`` if they differ between layers."""
        sizes = {(s.attention.num_heads, s.attention.num_kv_heads, s.mlp.intermediate_size) for s in spec.layers}
        if len(sizes) != 1:
            got = "; ".join(f"{heads} heads, {kv} key/value heads, {inner} neurons" for heads, kv, inner in sorted(sizes))
            raise UnsupportedModel("the layers of the model differ in size, and pruning keeps them alike", got=got)
        ((num_heads, num_kv_heads, intermediate_size),) = sizes
        return cls(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            intermediate_size=intermediate_size,
        )

    def apply(self, spec: DecoderSpec) -> DecoderSpec:
        """Return ``spec`` with these sizes and its first layers."""
        layers = tuple(self._layer(layer) for layer in spec.layers[: self.num_layers])
        return dataclasses.replace(spec, hidden_size=self.hidden_size, layers=layers)

    def _layer(self, layer: LayerSpec) -> LayerSpec:
        attention = dataclasses.replace(layer.attention, num_heads=self.num_heads, num_kv_heads=self.num_kv_heads)
        return LayerSpec(attention, dataclasses.replace(layer.mlp, intermediate_size=self.intermediate_size))


def num_parameters(spec: DecoderSpec) -> int:
    """Return the number of weights of a decoder, tied embeddings counted once."""
    size, norm_rows = spec.hidden_size, 2 if spec.norm.kind == "layer" else 1
    total = spec.vocab_size * size * (1 if spec.tie_word_embeddings else 2) + norm_rows * size
    total += spec.max_positions * size if spec.learned_positions else 0
    for layer in spec.layers:
        attention, mlp = layer.attention, layer.mlp
        up_rows = (2 if mlp.gated else 1) * mlp.intermediate_size
        total += size * (attention.qkv_size + attention.q_size + up_rows + mlp.intermediate_size) + 2 * norm_rows * size
        total += attention.qkv_size if attention.qkv_bias else 0
        total += size if attention.out_bias else 0
        total += up_rows + size if mlp.bias else 0
        total += 2 * attention.head_dim if attention.qk_norm is not None else 0
    return total
