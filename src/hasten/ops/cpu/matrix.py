"""``Weights`` and ``Matrix``: packed weight matrices in native memory."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype


class Weights:
    """Owns the memory of a model's matrices, in huge pages where the system has them. Freed as a whole."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.handle = cpu.library.weights_new()
        weakref.finalize(self, cpu.library.weights_free, self.handle)

    @property
    def num_bytes(self) -> int:
        """Of all matrices so far."""
        return int(self.cpu.library.weights_bytes(self.handle))


class Matrix:
    """One matrix [O, I] in the order in which the kernels read it; zero until packed. bfloat16 takes 12 bits a weight, losslessly.

    int8: a scale per output feature. int4: that scale, times a whole number from -15 to 15 for each 16 inputs of an output, times
    the weights' four bits (-8 to 7). ``int8_activations`` (int8, int4): products quantise their input to int8, per row; else the
    input stays float32 and the weights are widened.
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
        """Raises ``MemoryError``."""
        assert not int8_activations or dtype in (Dtype.INT8, Dtype.INT4), dtype
        self.weights, self.cpu = weights, weights.cpu
        self.out_features, self.in_features = out_features, in_features
        self.dtype, self.int8_activations = dtype, int8_activations
        self.handle = self.cpu.library.matrix_new(weights.handle, dtype, out_features, in_features)
        if not self.handle:
            raise self._refused()

    def pack(self, source_OI: Tensor, row: int) -> None:
        """Output features [row, row + len(source)) from float32, bfloat16 or float16 (or float64), quantised if need be.

        Each once. Raises ``MemoryError``.
        """
        if source_OI.dtype not in DTYPES:
            source_OI = source_OI.float()
        rows, columns = source_OI.shape
        assert columns == self.in_features and row in range(self.out_features) and row + rows <= self.out_features, (
            source_OI.shape,
            row,
        )
        refused = self.cpu.library.matrix_pack(
            self.cpu.handle,
            self.handle,
            source_OI.data_ptr(),
            DTYPES[source_OI.dtype],
            source_OI.stride(0),
            source_OI.stride(1),
            row,
            rows,
        )
        if refused:
            raise self._refused()

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x Wᵀ + b in float32. [T, O]. Raises ``MemoryError``."""
        x_TI = x_TI.float().contiguous()
        bias = None if bias_O is None else bias_O.float().contiguous()
        out_TO = torch.empty(len(x_TI), self.out_features)
        refused = self.cpu.library.matrix_multiply(
            self.cpu.handle,
            self.handle,
            x_TI.data_ptr(),
            len(x_TI),
            None if bias is None else bias.data_ptr(),
            self.int8_activations,
            out_TO.data_ptr(),
        )
        if refused:
            raise MemoryError("no memory for a matrix product")
        return out_TO

    def _refused(self) -> MemoryError:
        return MemoryError(f"no memory for {self.out_features} x {self.in_features} {self.dtype.name.lower()} weights")

    def lookup(self, ids_T: Tensor) -> Tensor:
        """Rows ``ids_T`` in float32. [T, I]"""
        ids = ids_T.to(torch.int32).contiguous()
        assert bool(((ids >= 0) & (ids < self.out_features)).all())
        out_TI = torch.empty(len(ids), self.in_features)
        self.cpu.library.matrix_lookup(self.cpu.handle, self.handle, ids.data_ptr(), len(ids), out_TI.data_ptr())
        return out_TI
