"""``NativeForm``: in which form native memory keeps a quantised matrix.

No weight changes its value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, QuantizedRows
from hasten.ops.cpu.cpu import Dtype
from hasten.ops.cpu.matrix import GROUP_SIZES, INTEGERS, NESTED_INPUTS, ZEROS, Groups, Matrix

_LARGEST = {Dtype.CODES4: 15, Dtype.CODES8: 255}
_NAMES = {Dtype.INT8: "int8", Dtype.CODES4: "4-bit codes", Dtype.CODES8: "8-bit codes", Dtype.FP8: "fp8"}


@dataclass(frozen=True, slots=True)
class NativeForm:
    """A dtype of native matrices, with its groups.

    ``shift`` is added to the codes, so that weight 0 has the code that the kernels expect.
    """

    dtype: Dtype
    groups: Groups | None = None
    shift: int = 0

    @property
    def bits(self) -> float:
        """Bits that a product reads for each weight."""
        bits = 4.0 if self.dtype is Dtype.CODES4 else 8.0
        if self.groups is None:
            return bits
        values = 2 if self.groups.has_offsets else 1
        if self.groups.is_nested:
            return bits + 8 * values / self.groups.size + 32 / NESTED_INPUTS
        return bits + 32 * values / self.groups.size

    @property
    def is_integer(self) -> bool:
        """Whether products may take int8 activations."""
        return self.dtype in INTEGERS

    @property
    def has_codes(self) -> bool:
        """Whether weights are codes in groups, which are multiplied with int16 activations in place of floats."""
        return self.dtype in (Dtype.CODES4, Dtype.CODES8)

    def describe(self) -> str:
        name = _NAMES[self.dtype]
        return name if self.groups is None else f"{name} in groups of {self.groups.size}"

    def pack(self, rows: QuantizedRows, matrix: Matrix, first: int) -> None:
        """Write rows into a native matrix of this form, from output ``first`` on. Raises ``NotFinite``."""
        if isinstance(rows, Fp8Rows):
            scales = self._regrouped(rows.scales_OC, rows.values_OI, rows.block_size)
            matrix.pack_codes(rows.values_OI, scales, None, first)
            return
        codes = rows.codes_OI if self.shift == 0 else rows.codes_OI + self.shift
        if self.groups is None:
            matrix.pack_codes(codes, rows.scales_OG[:, :1], None, first)
        elif self.groups.is_nested:
            assert rows.nested_scales is not None, rows
            matrix.pack_nested(codes, rows.nested_scales, rows.nested_offsets, first)
        else:
            offsets = rows.offsets()
            scales = self._regrouped(rows.scales_OG, codes, rows.group_size)
            matrix.pack_codes(codes, scales, None if offsets is None else self._regrouped(offsets, codes, rows.group_size), first)

    def _regrouped(self, values_OG: Tensor, codes_OI: Tensor, group_size: int) -> Tensor:
        """Return the values of the native groups, each of which lies in one group of ``group_size`` inputs."""
        assert self.groups is not None
        if group_size == self.groups.size:
            return values_OG
        starts = torch.arange(0, codes_OI.shape[1], self.groups.size, dtype=torch.int64, device="cpu")
        return values_OG[:, starts // group_size]


def find_native_form(spec: QuantSpec, in_features: int, max_inputs: int) -> NativeForm | None:
    """Return the form that keeps every weight, or None if there is none.

    ``max_inputs``: of a matrix in groups.
    """
    inputs = _inputs_of_a_scale(spec, in_features)
    size = next((size for size in GROUP_SIZES if inputs is None or inputs % size == 0), None)
    if size is None or in_features > max_inputs:
        return None
    if spec.kind == "float" and spec.bits == 8:
        return NativeForm(Dtype.FP8, Groups(size))
    if spec.has_offsets and spec.kind == "int":
        return NativeForm(Dtype.CODES4 if spec.bits <= 4 else Dtype.CODES8, Groups(size, True, spec.is_nested))
    assert spec.zero is not None, spec
    largest = 2 * spec.zero if spec.kind == "float" else 2**spec.bits - 1  # codes of FP4 numbers lie around that of 0
    if inputs is None and spec.bits > 4:
        return NativeForm(Dtype.INT8, shift=ZEROS[Dtype.INT8] - spec.zero)
    for dtype in (Dtype.CODES4, Dtype.CODES8):
        shift = ZEROS[dtype] - spec.zero
        if shift >= 0 and largest + shift <= _LARGEST[dtype]:
            return NativeForm(dtype, Groups(size, False, spec.is_nested), shift)
    return None


def _inputs_of_a_scale(spec: QuantSpec, in_features: int) -> int | None:
    """Return how many inputs of an output share a scale; None: all of them."""
    if spec.granularity in ("tensor", "channel"):
        return None
    inputs = spec.block[1] if spec.block is not None else spec.group_size
    assert inputs is not None, spec
    return None if inputs >= in_features else inputs
