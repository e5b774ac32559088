"""``Packed``: the matrix in native memory, repacked for the kernels and optionally quantised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hasten.layers.formats.base import NotFiniteWeights, StoredPart, WeightFormat
from hasten.layers.formats.conversion import Conversion
from hasten.layers.formats.dense import MetaFormatFactory
from hasten.layers.formats.fused import format_of_parts
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantized_rows
from hasten.ops.cpu.cpu import DTYPES, Dtype
from hasten.ops.cpu.library import NotFinite
from hasten.ops.cpu.matrix import Matrix, Weights
from hasten.ops.torch.backend import TorchOps

# Bits per packed weight.
BITS = {Dtype.FLOAT32: 32.0, Dtype.BFLOAT16: 12.0, Dtype.FLOAT16: 16.0, Dtype.INT8: 8.0, Dtype.INT4: 4.5}


class Packed(nn.Module):
    """It has no parameters, so it cannot be trained.

    Native programs read ``matrix``, which takes its memory on first use.
    """

    def __init__(
        self, weights: Weights, out_features: int, in_features: int, dtype: Dtype, *, int8_activations: bool = False
    ) -> None:
        super().__init__()
        self.out_features, self.in_features, self.int8_activations = out_features, in_features, int8_activations
        self.bits, self.form = BITS[dtype], dtype.name.lower()
        self.conversion: Conversion | None = None
        self._weights, self._dtype = weights, dtype
        self._matrix: Matrix | None = None

    @property
    def matrix(self) -> Matrix:
        """The native matrix. Raises like ``Matrix``."""
        if self._matrix is None:
            self._matrix = Matrix(
                self._weights, self.out_features, self.in_features, self._dtype, int8_activations=self.int8_activations
            )
        return self._matrix

    def load(self, part: str, source: Tensor | StoredMatrix, rows: slice, *, transposed: bool) -> None:
        assert part == "weight", part
        first = rows.start or 0
        try:
            if isinstance(source, Tensor):
                self.matrix.pack(source.T if transposed else source, first)
                return
            for start, weights in dequantized_rows(source):
                self.matrix.pack(weights, first + start)
                if self.conversion is not None:
                    ids = torch.arange(first + start, first + start + len(weights), dtype=torch.int64, device="cpu")
                    self.conversion.count(weights, self.matrix.lookup(ids))
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
    activations: str = "auto"  # of matrices that the checkpoint quantises: as its scheme says, "int8" or "float"

    def projection(self, in_features: int, out_features: int) -> Packed:
        if self.quantization is None:
            return self.table(out_features, in_features)
        int8_activations = not self.quantization.endswith("-weight-only")
        return Packed(self.weights, out_features, in_features, self._projection_dtype, int8_activations=int8_activations)

    lm_head = projection

    def table(self, num_rows: int, size: int) -> Packed:
        """Tables are never quantised."""
        return Packed(self.weights, num_rows, size, DTYPES[self.dtype])

    def stored(self, in_features: int, out_features: int, parts: Sequence[StoredPart]) -> WeightFormat:
        return format_of_parts(in_features, out_features, parts, self._alike, self._mixed)

    def on_meta(self) -> MetaFormatFactory:
        bits, table_bits = BITS[self._projection_dtype], BITS[DTYPES[self.dtype]]
        return MetaFormatFactory(TorchOps(), self.dtype, bits, table_bits, self.stored)

    def _alike(self, in_features: int, out_features: int, matrix: StoredMatrix | None) -> Packed:
        """Return the format of rows that are stored like ``matrix``, or as ordinary tensors."""
        return self.projection(in_features, out_features) if matrix is None else self._mixed(in_features, out_features)

    def _mixed(self, in_features: int, out_features: int) -> Packed:
        """Return a format for rows that are stored in any way: the dense dtype."""
        packed = self.table(out_features, in_features)
        packed.conversion = None if self.dtype == torch.float32 else Conversion()
        return packed

    @property
    def _projection_dtype(self) -> Dtype:
        if self.quantization is None:
            return DTYPES[self.dtype]
        return Dtype.INT8 if self.quantization.startswith("int8") else Dtype.INT4
