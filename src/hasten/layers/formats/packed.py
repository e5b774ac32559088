"""``Packed``: the matrix in native memory, repacked for the kernels and perhaps quantised (round to nearest) while it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.ops.cpu.cpu import DTYPES, Dtype
from hasten.ops.cpu.matrix import Matrix, Weights

INT4_GROUP = 128


class Packed(nn.Module):
    """No parameters: nothing here trains. ``matrix`` is what native programs are recorded with."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.name = matrix.dtype.name.lower()
        self.in_features, self.out_features = matrix.in_features, matrix.out_features

    def load(self, part: str, source: Tensor, rows: slice, *, transposed: bool) -> None:
        assert part == "weight", part
        self.matrix.pack(source.T if transposed else source, rows.start or 0)

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self.matrix.multiply(x_TI, bias_O).to(x_TI.dtype)

    def lookup(self, ids_T: Tensor) -> Tensor:
        return self.matrix.lookup(ids_T)


@dataclass(frozen=True, slots=True)
class PackedFormats:
    """Matrices in ``weights``: in ``dtype``, or quantised.

    int8: a scale per output feature. int4: a scale per 128 inputs of an output feature (per 64 or 32 where 128 does not divide
    them), the vocabulary in int8. Both multiply with inputs quantised to int8 per row, or with float32 inputs ("weight-only").
    """

    weights: Weights
    dtype: torch.dtype
    quantize: str | None = None

    def projection(self, in_features: int, out_features: int) -> Packed:
        if self.quantize is None:
            return self._plain(in_features, out_features)
        int8_activations = not self.quantize.endswith("weight-only")
        if self.quantize.startswith("int8"):
            return self._int8(in_features, out_features)
        group = next((size for size in (INT4_GROUP, 64) if in_features % size == 0), 32)
        return Packed(Matrix(self.weights, out_features, in_features, Dtype.INT4, group=group, int8_activations=int8_activations))

    def vocabulary(self, in_features: int, out_features: int) -> Packed:
        return self._plain(in_features, out_features) if self.quantize is None else self._int8(in_features, out_features)

    def table(self, num_rows: int, size: int) -> Packed:
        return self._plain(size, num_rows)

    def _plain(self, in_features: int, out_features: int) -> Packed:
        return Packed(Matrix(self.weights, out_features, in_features, DTYPES[self.dtype]))

    def _int8(self, in_features: int, out_features: int) -> Packed:
        assert self.quantize is not None
        int8_activations = not self.quantize.endswith("weight-only")
        return Packed(Matrix(self.weights, out_features, in_features, Dtype.INT8, int8_activations=int8_activations))
