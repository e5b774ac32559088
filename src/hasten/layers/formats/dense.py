"""``Dense``: the matrix as it is, in float32, bfloat16 or float16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.layers.formats.base import check_finite
from hasten.ops.base import Ops


class Dense(nn.Module):
    """One parameter, ``weight`` [O, I], allocated but not initialised."""

    def __init__(
        self, in_features: int, out_features: int, ops: Ops, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.ops = in_features, out_features, ops
        self.bits = 8.0 * dtype.itemsize
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device=device), requires_grad=False)

    def load(self, part: str, source: Tensor, rows: slice, *, transposed: bool) -> None:
        with torch.no_grad():
            check_finite(self.get_parameter(part)[rows].copy_(source.T if transposed else source))

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self.ops.linear(x_TI, self.weight, bias_O)

    def lookup(self, ids_T: Tensor) -> Tensor:
        return F.embedding(ids_T, self.weight)


@dataclass(frozen=True, slots=True)
class DenseFormatFactory:
    """All matrices dense, in one dtype."""

    ops: Ops
    dtype: torch.dtype
    device: torch.device | str = "cpu"

    def projection(self, in_features: int, out_features: int) -> Dense:
        return Dense(in_features, out_features, self.ops, self.dtype, self.device)

    lm_head = projection

    def table(self, num_rows: int, size: int) -> Dense:
        return self.projection(size, num_rows)

    def on_meta(self) -> DenseFormatFactory:
        return DenseFormatFactory(self.ops, self.dtype, "meta")


@dataclass(frozen=True, slots=True)
class MetaFormatFactory:
    """Dense matrices on the meta device. A weight takes ``bits``, or ``table_bits`` in a table."""

    ops: Ops
    dtype: torch.dtype
    bits: float
    table_bits: float

    def projection(self, in_features: int, out_features: int) -> Dense:
        return self._matrix(in_features, out_features, self.bits)

    lm_head = projection

    def table(self, num_rows: int, size: int) -> Dense:
        return self._matrix(size, num_rows, self.table_bits)

    def on_meta(self) -> MetaFormatFactory:
        return self

    def _matrix(self, in_features: int, out_features: int, bits: float) -> Dense:
        matrix = Dense(in_features, out_features, self.ops, self.dtype, "meta")
        matrix.bits = bits
        return matrix
