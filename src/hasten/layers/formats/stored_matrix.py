"""``StoredMatrix``: a quantised matrix of a checkpoint, decoded a few rows at a time.

Every scheme decodes to one of two forms: integer codes in groups, or FP8 numbers. A weight format takes these as they are; dense
formats take ``dequantize``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hasten.layers.formats.quant_spec import QuantSpec


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """Rows in integer codes, with a scale for ``group_size`` inputs of a row.

    With ``offsets_OG`` a weight is scale * code + offset, else scale * (code - zero). Both are computed in float32. The last group
    of a row may be shorter.
    """

    codes_OI: Tensor  # uint8
    scales_OG: Tensor  # float32
    group_size: int
    zeros: int | Tensor = 0  # the same for all groups, or float32 [O, G]
    offsets_OG: Tensor | None = None  # float32; ``zeros`` is then 0

    def offsets(self) -> Tensor | None:
        """Return the offsets of the form scale * code + offset, float32 [O, G].

        None where ``zeros`` is a number.
        They are exact for integer zeros of at most 8 bits and scales of 16 bits.
        """
        if self.offsets_OG is not None or isinstance(self.zeros, int):
            return self.offsets_OG
        return -self.zeros * self.scales_OG

    def dequantize(self) -> Tensor:
        """Return the weights, float32 [O, I]."""
        codes = self.codes_OI.float()
        if self.offsets_OG is not None:
            return codes.mul_(self._per_input(self.scales_OG)).add_(self._per_input(self.offsets_OG))
        zeros = self.zeros if isinstance(self.zeros, int) else self._per_input(self.zeros)
        return codes.sub_(zeros).mul_(self._per_input(self.scales_OG))

    def _per_input(self, values_OG: Tensor) -> Tensor:
        return values_OG.repeat_interleave(self.group_size, dim=1)[:, : self.codes_OI.shape[1]]


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """Rows in FP8 e4m3, with a scale for ``block_size`` inputs of a row. A weight is scale * value.

    The last block of a row may be shorter.
    """

    values_OI: Tensor  # float8_e4m3fn
    scales_OC: Tensor  # float32
    block_size: int

    def dequantize(self) -> Tensor:
        """Return the weights, float32 [O, I]."""
        scales = self.scales_OC.repeat_interleave(self.block_size, dim=1)[:, : self.values_OI.shape[1]]
        return self.values_OI.to(torch.float32).mul_(scales)


QuantizedRows = GroupedRows | Fp8Rows


class StoredMatrix(Protocol):
    """A matrix [O, I] of a checkpoint. Nothing is read before a method is called; files are memory-mapped."""

    @property
    def name(self) -> str:
        """The name of the weight, such as "model.layers.0.mlp.down_proj.weight"."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the tensors that hold codes, scales and zeros in the file."""
        ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def spec(self) -> QuantSpec: ...

    @property
    def nbytes(self) -> int:
        """Bytes in the file: codes, scales and zeros."""
        ...

    def input_order(self) -> Tensor | None:
        """Return which input each column of ``rows`` belongs to, int64 [I]; None: column i is input i.

        Raises ``CheckpointError`` for an order that is not a permutation into full groups.
        """
        ...

    def rows(self, start: int, stop: int) -> QuantizedRows:
        """Decode the outputs ``[start, stop)``.

        Raises ``CheckpointError`` for scales that are NaN or infinite, and for codes that are not numbers.
        """
        ...


def dequantize(matrix: StoredMatrix, start: int, stop: int) -> Tensor:
    """Return the outputs ``[start, stop)`` with their inputs in order, float32 [O, I]."""
    columns, order = matrix.rows(start, stop).dequantize(), matrix.input_order()
    if order is None:
        return columns
    weights = torch.empty_like(columns)
    weights[:, order] = columns
    return weights
