"""``Dense``: the matrix as it is, in float32, bfloat16 or float16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.layers.formats.base import StoredPart, WeightFormat, check_finite
from hasten.layers.formats.conversion import Conversion
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantized_rows
from hasten.ops.base import Ops


class Dense(nn.Module):
    """One parameter, ``weight`` [O, I], allocated but not initialised."""

    activations = "float"

    def __init__(
        self, in_features: int, out_features: int, ops: Ops, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.ops = in_features, out_features, ops
        self.bits, self.form = 8.0 * dtype.itemsize, str(dtype).removeprefix("torch.")
        self.conversion: Conversion | None = None
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype, device=device), requires_grad=False)

    def load(self, part: str, source: Tensor | StoredMatrix, rows: slice, *, transposed: bool) -> None:
        with torch.no_grad():
            target = self.get_parameter(part)[rows]
            if isinstance(source, Tensor):
                check_finite(target.copy_(source.T if transposed else source))
                return
            for start, weights in dequantized_rows(source):
                kept = target[start : start + len(weights)].copy_(weights)
                check_finite(kept)
                if self.conversion is not None:
                    self.conversion.count(weights, kept)

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

    def stored(self, in_features: int, out_features: int, parts: Sequence[StoredPart]) -> Dense:
        matrix = self.projection(in_features, out_features)
        matrix.conversion = None if self.dtype == torch.float32 else Conversion()
        return matrix

    def on_meta(self) -> DenseFormatFactory:
        return DenseFormatFactory(self.ops, self.dtype, "meta")


@dataclass(frozen=True, slots=True)
class MetaFormatFactory:
    """Dense matrices on the meta device. A weight takes ``bits``, or ``table_bits`` in a table.

    ``stored_format`` is ``stored`` of the factory that this one plans for; its formats must take no memory before they are loaded.
    """

    ops: Ops
    dtype: torch.dtype
    bits: float
    table_bits: float
    stored_format: Callable[[int, int, Sequence[StoredPart]], WeightFormat]

    def projection(self, in_features: int, out_features: int) -> Dense:
        return self._matrix(in_features, out_features, self.bits)

    lm_head = projection

    def table(self, num_rows: int, size: int) -> Dense:
        return self._matrix(size, num_rows, self.table_bits)

    def stored(self, in_features: int, out_features: int, parts: Sequence[StoredPart]) -> WeightFormat:
        return self.stored_format(in_features, out_features, parts)

    def on_meta(self) -> MetaFormatFactory:
        return self

    def _matrix(self, in_features: int, out_features: int, bits: float) -> Dense:
        matrix = Dense(in_features, out_features, self.ops, self.dtype, "meta")
        matrix.bits = bits
        return matrix
