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
from hasten.layers.formats.native_form import NativeForm, find_native_form
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantized_rows, in_order, quantized_rows
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
        self,
        weights: Weights,
        out_features: int,
        in_features: int,
        form: NativeForm | Dtype,
        *,
        int8_activations: bool = False,
        input_order: Tensor | None = None,
    ) -> None:
        """``form``: a dtype, to which weights are converted, or the form of quantised matrices.

        ``input_order``: the input that each column of the native matrix belongs to; None: their own order.
        """
        super().__init__()
        self.out_features, self.in_features, self.int8_activations = out_features, in_features, int8_activations
        self.bits, self.form = (BITS[form], form.name.lower()) if isinstance(form, Dtype) else (form.bits, form.describe())
        # Codes take 16-bit integers in place of floats.
        has_codes = isinstance(form, NativeForm) and form.has_codes
        self.activations = "int8" if int8_activations else "int16" if has_codes else "float"
        self.conversion: Conversion | None = None
        self.input_order = input_order
        self._weights, self._form = weights, form
        self._matrix: Matrix | None = None

    @property
    def matrix(self) -> Matrix:
        """The native matrix. Raises like ``Matrix``."""
        if self._matrix is None:
            dtype, groups = (self._form, None) if isinstance(self._form, Dtype) else (self._form.dtype, self._form.groups)
            shape = (self.out_features, self.in_features)
            self._matrix = Matrix(self._weights, *shape, dtype, groups=groups, int8_activations=self.int8_activations)
        return self._matrix

    def load(self, part: str, source: Tensor | StoredMatrix, rows: slice, *, transposed: bool) -> None:
        assert part == "weight", part
        first = rows.start or 0
        try:
            if isinstance(source, Tensor):
                self.matrix.pack(source.T if transposed else source, first)
            elif isinstance(self._form, NativeForm):
                for start, quantized in quantized_rows(source):
                    self._form.pack(quantized, self.matrix, first + start)
            else:
                self._convert(source, first)
        except NotFinite as error:
            raise NotFiniteWeights from error

    def _convert(self, source: StoredMatrix, first: int) -> None:
        """Pack dequantised weights."""
        for start, weights in dequantized_rows(source):
            self.matrix.pack(weights, first + start)
            if self.conversion is not None:
                ids = torch.arange(first + start, first + start + len(weights), dtype=torch.int64, device="cpu")
                self.conversion.count(weights, self.matrix.lookup(ids))

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        columns = x_TI if self.input_order is None else x_TI[:, self.input_order]
        return self.matrix.multiply(columns, bias_O).to(x_TI.dtype)

    def lookup(self, ids_T: Tensor) -> Tensor:
        columns = self.matrix.lookup(ids_T)
        return columns if self.input_order is None else in_order(columns, self.input_order)


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
        if matrix is None:
            return self.projection(in_features, out_features)
        form = find_native_form(matrix.spec, in_features, self.weights.cpu.library.limits.int8_inputs)
        if form is None:
            return self._mixed(in_features, out_features)
        int8_activations = form.is_integer and matrix.spec.has_int8_activations(self.activations)
        order = matrix.input_order()
        return Packed(self.weights, out_features, in_features, form, int8_activations=int8_activations, input_order=order)

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
