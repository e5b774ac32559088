"""``Weights`` and ``Matrix``: packed weight matrices in native memory."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype


class Weights:
    """Memory of a model's matrices, in huge pages where the system has them. Freed at once."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.handle = cpu.library.weights_new()
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
        """Raises ``MemoryError``."""
        assert not int8_activations or dtype in (Dtype.INT8, Dtype.INT4), dtype
        self.weights, self.cpu = weights, weights.cpu
        self.out_features, self.in_features = out_features, in_features
        self.dtype, self.int8_activations = dtype, int8_activations
        self.handle = self.cpu.library.matrix_new(weights.handle, dtype, out_features, in_features)
        if not self.handle:
            raise self._out_of_memory()

    def pack(self, source_OI: Tensor, row: int) -> None:
        """Pack output features [row, row + len(source)), each once, from a floating-point tensor.

        Quantises where the format needs it. Raises ``MemoryError``.
        """
        if source_OI.dtype not in DTYPES:
            source_OI = source_OI.float()
        rows, columns = source_OI.shape
        assert columns == self.in_features and row in range(self.out_features) and row + rows <= self.out_features, (
            source_OI.shape,
            row,
        )
        out_of_memory = self.cpu.library.matrix_pack(
            self.cpu.handle,
            self.handle,
            source_OI.data_ptr(),
            DTYPES[source_OI.dtype],
            source_OI.stride(0),
            source_OI.stride(1),
            row,
            rows,
        )
        if out_of_memory:
            raise self._out_of_memory()

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return x Wᵀ + b in float32, [T, O]. Raises ``MemoryError``."""
        x_TI = x_TI.float().contiguous()
        bias = None if bias_O is None else bias_O.float().contiguous()
        out_TO = torch.empty(len(x_TI), self.out_features)
        out_of_memory = self.cpu.library.matrix_multiply(
            self.cpu.handle,
            self.handle,
            x_TI.data_ptr(),
            len(x_TI),
            None if bias is None else bias.data_ptr(),
            self.int8_activations,
            out_TO.data_ptr(),
        )
        if out_of_memory:
            raise MemoryError("no memory for a matrix product")
        return out_TO

    def lookup(self, ids_T: Tensor) -> Tensor:
        """Return the rows ``ids_T`` in float32, [T, I]."""
        ids = ids_T.to(torch.int32).contiguous()
        assert bool(((ids >= 0) & (ids < self.out_features)).all())
        out_TI = torch.empty(len(ids), self.in_features)
        self.cpu.library.matrix_lookup(self.cpu.handle, self.handle, ids.data_ptr(), len(ids), out_TI.data_ptr())
        return out_TI

    def _out_of_memory(self) -> MemoryError:
        return MemoryError(f"no memory for {self.out_features} x {self.in_features} {self.dtype.name.lower()} weights")
