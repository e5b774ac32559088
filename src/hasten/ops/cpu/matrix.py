"""``Weights`` and ``Matrix``: packed weight matrices in native memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype
from hasten.ops.cpu.limits import check_matrix
from hasten.ops.cpu.native_tensor import address, float_rows, new_rows, strided_address


class Weights:
    """Memory of a model's matrices, in huge pages where the system has them. Freed at once."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.handle = cpu.library.new("weights")
        weakref.finalize(self, cpu.library.weights_free, self.handle)

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices so far."""
        return int(self.cpu.library.weights_bytes(self.handle))


INTEGERS = (Dtype.INT8, Dtype.INT4, Dtype.CODES4, Dtype.CODES8)  # products may take int8 activations
NESTED_INPUTS = 256
GROUP_SIZES = (128, 64, 32, 16)  # inputs that share a scale
ZEROS = {Dtype.INT8: 128, Dtype.CODES4: 8, Dtype.CODES8: 128}  # the code of weight 0, without offsets


@dataclass(frozen=True, slots=True)
class Groups:
    """``size`` inputs of an output share a scale, and perhaps an offset (``CODES4``, ``CODES8``, ``FP8``).

    ``is_nested`` (``CODES4``, ``CODES8``): these are signed bytes, times a float16 for all of ``NESTED_INPUTS`` inputs.
    """

    size: int
    has_offsets: bool = False
    is_nested: bool = False


class Nested(Protocol):
    """Scales or offsets of nested groups: ``steps_OG``, int8, times ``factors_OB``, float16."""

    @property
    def steps_OG(self) -> Tensor: ...

    @property
    def factors_OB(self) -> Tensor: ...


class Matrix:
    """One weight matrix [O, I] in the layout of the kernels; zero until packed.

    bfloat16 is losslessly compressed to 12 bits per weight. int8 has a scale per output feature. int4 (-8 to 7) has the same
    scale, times an integer from -15 to 15 for each 16 inputs of an output. Matrices that were quantised before are kept as they
    are: integer codes of 4 or 8 bits with scales and offsets of ``groups``, or FP8 numbers with scales. ``int8_activations``
    (``INTEGERS``): products quantise their input to int8 per row; else codes in groups take it in 16 bits, with a scale for each
    128 inputs, and weights of the other dtypes are dequantised and take it in float32.
    """

    def __init__(
        self,
        weights: Weights,
        out_features: int,
        in_features: int,
        dtype: Dtype,
        *,
        groups: Groups | None = None,
        int8_activations: bool = False,
    ) -> None:
        """Raises ``MemoryError``, or ``UnsupportedModel`` for a shape that the kernels do not take."""
        assert not int8_activations or dtype in INTEGERS, dtype
        assert (groups is not None) == (dtype >= Dtype.CODES4), (dtype, groups)
        self.weights, self.cpu = weights, weights.cpu
        self.out_features, self.in_features = out_features, in_features
        self.dtype, self.groups, self.int8_activations = dtype, groups, int8_activations
        check_matrix(self.cpu.library.limits, out_features, in_features, int8_activations=int8_activations or groups is not None)
        shape = (weights.handle, dtype, out_features, in_features)
        with self._memory_errors():
            if groups is None:
                self.handle = self.cpu.library.new("matrix", *shape)
            else:
                self.handle = self.cpu.library.new("matrix_new_grouped", *shape, groups.size, groups.has_offsets, groups.is_nested)

    def pack(self, source_OI: Tensor, row: int) -> None:
        """Pack output features [row, row + len(source)), each once, from a floating-point tensor.

        Quantises where the format needs it. Raises ``MemoryError``, or ``NotFinite`` if a weight is NaN or infinite as stored.
        """
        if source_OI.dtype not in DTYPES:
            source_OI = source_OI.float()
        rows = len(source_OI)
        source = strided_address(source_OI, source_OI.dtype, rows, self.in_features)
        dtype, strides = DTYPES[source_OI.dtype], source_OI.stride()
        with self._memory_errors():
            self.cpu.library.matrix_pack(self.cpu.handle, self.handle, source, dtype, *strides, row, rows)

    def pack_codes(self, codes_OI: Tensor, scales_OG: Tensor, offsets_OG: Tensor | None, row: int) -> None:
        """Pack output features [row, row + len(codes)), each once, as they were quantised.

        ``codes_OI`` are bytes, uint8 or FP8. Scales and offsets are float32, [O, ceil(I / size)]; scales of int8 are [O, 1]. Raises
        ``NotFinite`` for scales or offsets that are NaN or infinite, and FP8 numbers that are NaN.
        """
        rows = len(codes_OI)
        num_groups = 1 if self.groups is None else -(-self.in_features // self.groups.size)
        codes = codes_OI.view(torch.uint8).contiguous()
        scales = float_rows(scales_OG)
        offsets = None if offsets_OG is None else float_rows(offsets_OG)
        self.cpu.library.matrix_pack_codes(
            self.cpu.handle,
            self.handle,
            address(codes, torch.uint8, rows, self.in_features),
            self.in_features,
            address(scales, torch.float32, rows, num_groups),
            None if offsets is None else address(offsets, torch.float32, rows, num_groups),
            row,
            rows,
        )

    def pack_nested(self, codes_OI: Tensor, scales: Nested, offsets: Nested | None, row: int) -> None:
        """Pack output features [row, row + len(codes)) of nested groups, each once.

        Raises ``NotFinite`` for scales or offsets of blocks that are NaN or infinite.
        """
        assert self.groups is not None
        rows, num_groups, num_blocks = (
            len(codes_OI),
            -(-self.in_features // self.groups.size),
            -(-self.in_features // NESTED_INPUTS),
        )
        nested = (scales,) if offsets is None else (scales, offsets)
        steps = [values.steps_OG.contiguous() for values in nested]
        factors = [values.factors_OB.contiguous() for values in nested]
        codes, none = codes_OI.contiguous(), [None] * (2 - len(nested))
        self.cpu.library.matrix_pack_nested(
            self.cpu.handle,
            self.handle,
            address(codes, torch.uint8, rows, self.in_features),
            self.in_features,
            *(address(values, torch.int8, rows, num_groups) for values in steps),
            *none,
            *(address(values, torch.float16, rows, num_blocks) for values in factors),
            *none,
            row,
            rows,
        )

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return x Wᵀ + b in float32, [T, O]. Raises ``MemoryError``."""
        x_TI = float_rows(x_TI)
        bias = None if bias_O is None else float_rows(bias_O)
        rows, out_features = len(x_TI), self.out_features
        out_TO = new_rows(rows, out_features)
        self.cpu.library.matrix_multiply(
            self.cpu.handle,
            self.handle,
            address(x_TI, torch.float32, rows, self.in_features),
            rows,
            None if bias is None else address(bias, torch.float32, out_features),
            self.int8_activations,
            address(out_TO, torch.float32, rows, out_features),
        )
        return out_TO

    def lookup(self, ids_T: Tensor) -> Tensor:
        """Return the rows ``ids_T`` in float32, [T, I]."""
        ids = ids_T.to(torch.int32).contiguous()
        count = len(ids)
        out_TI = new_rows(count, self.in_features)
        self.cpu.library.matrix_lookup(
            self.cpu.handle,
            self.handle,
            address(ids, torch.int32, count),
            count,
            address(out_TI, torch.float32, count, self.in_features),
        )
        return out_TI

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Say in a ``MemoryError`` what the memory was for."""
        try:
            yield
        except MemoryError as error:
            name = self.dtype.name.lower()
            raise MemoryError(f"no memory for {self.out_features} x {self.in_features} {name} weights") from error
