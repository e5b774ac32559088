"""``StoredMatrix``: a quantised matrix of a checkpoint, decoded a few rows at a time.

Every scheme decodes to one of two forms: integer codes in groups, or FP8 numbers. A weight format takes these as they are; dense
formats take ``dequantize``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hasten.layers.formats.quant_spec import QuantSpec

CHUNK_WEIGHTS = 2**22  # that ``dequantized_rows`` decodes at a time: 16 MiB in float32
CHUNK_ROWS = 64  # of a chunk, times a whole number: schemes pack up to 64 outputs into a word


@dataclass(frozen=True, slots=True)
class Nested:
    """Scales or offsets of groups that are whole multiples of a float16, one for each 256 inputs of a row."""

    steps_OG: Tensor  # int8
    factors_OB: Tensor  # float16

    def values(self) -> Tensor:
        """Return the products, float32 [O, G]. They are exact."""
        groups_per_block = self.steps_OG.shape[1] // self.factors_OB.shape[1]
        return self.steps_OG.float() * self.factors_OB.float().repeat_interleave(groups_per_block, dim=1)


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
    nested_scales: Nested | None = None  # the same scales
    nested_offsets: Nested | None = None  # the same offsets

    def offsets(self) -> Tensor | None:
        """Return the offsets of the form scale * code + offset, float32 [O, G].

        None where ``zeros`` is a number.
        They are exact for integer zeros of at most 8 bits and scales of 16 bits.
        """
        if self.offsets_OG is not None or isinstance(self.zeros, int):
            return self.offsets_OG
        return -self.zeros * self.scales_OG

    def part(self, rows: slice) -> GroupedRows:
        """Return some of the rows. Rows in nested scales have no parts."""
        assert self.nested_scales is None and self.nested_offsets is None
        zeros = self.zeros if isinstance(self.zeros, int) else self.zeros[rows]
        offsets = None if self.offsets_OG is None else self.offsets_OG[rows]
        return GroupedRows(self.codes_OI[rows], self.scales_OG[rows], self.group_size, zeros, offsets)

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

    def part(self, rows: slice) -> Fp8Rows:
        """Return some of the rows."""
        return Fp8Rows(self.values_OI[rows], self.scales_OC[rows], self.block_size)

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


def in_order(columns_OI: Tensor, order_I: Tensor) -> Tensor:
    """Return the matrix whose input ``order_I[j]`` is column j of ``columns_OI``."""
    weights = torch.empty_like(columns_OI)
    weights[:, order_I] = columns_OI
    return weights


def dequantize(matrix: StoredMatrix, start: int, stop: int) -> Tensor:
    """Return the outputs ``[start, stop)`` with their inputs in order, float32 [O, I]."""
    columns, order = matrix.rows(start, stop).dequantize(), matrix.input_order()
    return columns if order is None else in_order(columns, order)


def _chunks(matrix: StoredMatrix) -> Iterator[tuple[int, int]]:
    """Yield ranges of outputs that are decoded at a time."""
    out_features, in_features = matrix.shape
    step = max(1, CHUNK_WEIGHTS // max(1, in_features))
    step = step // CHUNK_ROWS * CHUNK_ROWS or step
    for start in range(0, out_features, step):
        yield start, min(start + step, out_features)


def quantized_rows(matrix: StoredMatrix) -> Iterator[tuple[int, QuantizedRows]]:
    """Decode the matrix a few rows at a time.

    Yields their first output, and their codes as of ``StoredMatrix.rows``.
    """
    for start, stop in _chunks(matrix):
        yield start, matrix.rows(start, stop)


def dequantized_rows(matrix: StoredMatrix) -> Iterator[tuple[int, Tensor]]:
    """Decode the matrix a few rows at a time.

    Yields their first output, and their weights as of ``dequantize``.
    """
    for start, stop in _chunks(matrix):
        yield start, dequantize(matrix, start, stop)


def are_equal(one: StoredMatrix | None, other: StoredMatrix | None) -> bool:
    """Whether both are quantised matrices of one shape and scheme, with the same weights."""
    if one is None or other is None or one.shape != other.shape or one.spec != other.spec:
        return False
    chunks = zip(dequantized_rows(one), dequantized_rows(other), strict=True)
    return all(torch.equal(weights, others) for (_, weights), (_, others) in chunks)
