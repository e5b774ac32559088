"""``Weights`` and ``Matrix``: packed weight matrices in native memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

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


class Matrix:
    """One weight matrix [O, I] in the layout of the kernels; zero until packed.

    bfloat16 is losslessly compressed to 12 bits per weight. int8 has a scale per output feature. int4 (-8 to 7) has the same
    scale, times an integer from -15 to 15 for each 16 inputs of an output. ``int8_activations`` (int8, int4): products quantise
    their input to int8 per row; else the input stays float32 and the weights are dequantised.
    """

    def __init__(
        self,
        weights: Weights,
        out_features: int,
        in_features: int,
        dtype: Dtype,
        *,
        int8_activations: bool = False,
    ) -> None:
        """Raises ``MemoryError``, or ``UnsupportedModel`` for a shape that the kernels do not take."""
        assert not int8_activations or dtype in (Dtype.INT8, Dtype.INT4), dtype
        self.weights, self.cpu = weights, weights.cpu
        self.out_features, self.in_features = out_features, in_features
        self.dtype, self.int8_activations = dtype, int8_activations
        check_matrix(self.cpu.library.limits, out_features, in_features, int8_activations=int8_activations)
        with self._memory_errors():
            self.handle = self.cpu.library.new("matrix", weights.handle, dtype, out_features, in_features)

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
