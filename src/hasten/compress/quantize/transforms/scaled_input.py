"""``ScaledInput``: a matrix whose inputs can be rescaled, and what produces them.

::

    attention_norm ─► qkv        the norm's weights are divided
    v rows of qkv  ─► out        rows are divided; query heads of a group read the same value
    mlp_norm       ─► up
    up half of up  ─► down       of gated layers only: activation(gate) · up is linear in up

Shape suffixes: O outputs · I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.layers.decoder_layer import DecoderLayer
from hasten.layers.formats.dense import Dense
from hasten.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class ScaledInput:
    name: str  # of the matrix in the layer, such as "attention.qkv"
    consumer: Linear
    producers: tuple[Tensor, ...]  # vectors, or rows of matrices and biases; dimension 0 is what produces the inputs
    index_I: Tensor  # int64: the row of the producers that produces each input

    @property
    def is_after_norm(self) -> bool:
        return self.producers[0].ndim == 1

    def tie(self, scales_I: Tensor) -> Tensor:
        """Return the factors with one value, the geometric mean, for inputs that the same row produces."""
        num_rows = len(self.producers[0])
        sums = torch.zeros(num_rows, dtype=scales_I.dtype, device="cpu").index_add_(0, self.index_I, scales_I.log())
        means: Tensor = (sums / self.index_I.bincount(minlength=num_rows)).exp()
        return means[self.index_I]

    def apply(self, scales_I: Tensor) -> None:
        """Multiply the columns of the matrix by tied factors, and divide what produces its inputs."""
        row_scales = torch.ones(len(self.producers[0]), dtype=scales_I.dtype, device="cpu")
        row_scales[self.index_I] = scales_I
        with torch.no_grad():
            dense_weight(self.consumer).mul_(scales_I)
            for producer in self.producers:
                producer.div_(row_scales.reshape(-1, *[1] * (producer.ndim - 1)))


def scaled_inputs(layer: DecoderLayer) -> tuple[ScaledInput, ...]:
    """Return the matrices of a dense layer whose inputs can be rescaled, in the order of the forward pass."""
    attention, mlp = layer.attention, layer.mlp
    spec, gated = attention.spec, mlp.spec.gated
    inputs = [
        _after(layer.attention_norm.weight, layer.attention_norm.bias, "attention.qkv", attention.qkv),
        _after(
            dense_weight(attention.qkv)[-spec.kv_size :],
            None if attention.qkv.bias is None else attention.qkv.bias[-spec.kv_size :],
            "attention.out",
            attention.out,
            _value_of_each_query(spec.num_heads, spec.num_kv_heads, spec.head_dim),
        ),
        _after(layer.mlp_norm.weight, layer.mlp_norm.bias, "mlp.up", mlp.up),
    ]
    if gated:
        rows = slice(mlp.spec.intermediate_size, None)
        bias = None if mlp.up.bias is None else mlp.up.bias[rows]
        inputs.append(_after(dense_weight(mlp.up)[rows], bias, "mlp.down", mlp.down))
    return tuple(inputs)


def dense_weight(linear: Linear) -> Tensor:
    """Return the matrix [O, I] of a dense ``Linear``."""
    assert isinstance(linear.format, Dense)
    return linear.format.weight


def _after(weight: Tensor, bias: Tensor | None, name: str, consumer: Linear, index_I: Tensor | None = None) -> ScaledInput:
    index_I = torch.arange(len(weight), dtype=torch.int64, device="cpu") if index_I is None else index_I
    return ScaledInput(name, consumer, (weight,) if bias is None else (weight, bias), index_I)


def _value_of_each_query(num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    heads = torch.arange(num_heads, dtype=torch.int64, device="cpu") // (num_heads // num_kv_heads)
    return (heads[:, None] * head_dim + torch.arange(head_dim, dtype=torch.int64, device="cpu")).flatten()
