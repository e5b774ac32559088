"""``Packed``: the matrix in native memory, repacked for the kernels and optionally quantised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.layers.formats.base import NotFiniteWeights
from hasten.layers.formats.dense import MetaFormatFactory
from hasten.ops.cpu.cpu import DTYPES, Dtype
from hasten.ops.cpu.library import NotFinite
from hasten.ops.cpu.matrix import Matrix, Weights
from hasten.ops.torch.backend import TorchOps

# Bits per packed weight.
BITS = {Dtype.FLOAT32: 32.0, Dtype.BFLOAT16: 12.0, Dtype.FLOAT16: 16.0, Dtype.INT8: 8.0, Dtype.INT4: 4.5}


class Packed(nn.Module):
    """It has no parameters, so it cannot be trained. Native programs read ``matrix``."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.in_features, self.out_features = matrix.in_features, matrix.out_features
        self.bits = BITS[matrix.dtype]

    def load(self, part: str, source: Tensor, rows: slice, *, transposed: bool) -> None:
        assert part == "weight", part
        try:
            self.matrix.pack(source.T if transposed else source, rows.start or 0)
        except NotFinite as error:
            raise NotFiniteWeights from error

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self.matrix.multiply(x_TI, bias_O).to(x_TI.dtype)

    def lookup(self, ids_T: Tensor) -> Tensor:
        return self.matrix.lookup(ids_T)


@dataclass(frozen=True, slots=True)
class PackedFormatFactory:
    """Matrices in ``weights``, in ``dtype`` or quantised (round to nearest).

    int8 has a scale per output feature; int4 takes 4.5 bits per weight, lm_head included. Products quantise their input to int8 per
    row, or keep it in float32 with the suffix "-weight-only".
    """

    weights: Weights
    dtype: torch.dtype
    quantization: str | None = None

    def projection(self, in_features: int, out_features: int) -> Packed:
        if self.quantization is None:
            return self.table(out_features, in_features)
        int8_activations = not self.quantization.endswith("-weight-only")
        return Packed(Matrix(self.weights, out_features, in_features, self._projection_dtype, int8_activations=int8_activations))

    lm_head = projection

    def table(self, num_rows: int, size: int) -> Packed:
        """Tables are never quantised."""
        return Packed(Matrix(self.weights, num_rows, size, DTYPES[self.dtype]))

    def on_meta(self) -> MetaFormatFactory:
        return MetaFormatFactory(TorchOps(), self.dtype, BITS[self._projection_dtype], BITS[DTYPES[self.dtype]])

    @property
    def _projection_dtype(self) -> Dtype:
        if self.quantization is None:
            return DTYPES[self.dtype]
        return Dtype.INT8 if self.quantization.startswith("int8") else Dtype.INT4
