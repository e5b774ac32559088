"""``Fused``: a matrix made of several, each with some of its rows in a format of its own.

Projections that hasten fuses, such as q, k and v, may be quantised differently in a checkpoint, or only in part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from hasten.layers.formats.base import StoredPart, WeightFormat
from hasten.layers.formats.conversion import Conversion
from hasten.layers.formats.stored_matrix import StoredMatrix

ROW_MULTIPLE = 16  # parts begin and end at multiples of so many rows, where native programs can split a buffer


class Fused(nn.Module):
    """``formats`` holds consecutive rows of the matrix."""

    def __init__(self, formats: Sequence[WeightFormat]) -> None:
        super().__init__()
        self._formats = nn.ModuleList(cast(Sequence[nn.Module], formats))
        self.in_features, self.out_features = formats[0].in_features, sum(part.out_features for part in formats)
        self.bits = sum(part.bits * part.out_features for part in formats) / self.out_features
        self.form = " and ".join(dict.fromkeys(part.form for part in formats))
        self.activations = " and ".join(dict.fromkeys(part.activations for part in formats))
        self.conversion: Conversion | None = None  # each part has its own

    @property
    def parts(self) -> tuple[tuple[slice, WeightFormat], ...]:
        """The parts, each with its rows."""
        formats = cast(Sequence[WeightFormat], list(self._formats))
        bounds = pairwise(accumulate((part.out_features for part in formats), initial=0))
        return tuple((slice(*rows), part) for rows, part in zip(bounds, formats, strict=True))

    def load(self, part: str, source: Tensor | StoredMatrix, rows: slice, *, transposed: bool) -> None:
        start, stop, _ = rows.indices(self.out_features)
        holder, inside = next((held, part) for held, part in self.parts if held.start <= start and stop <= held.stop)
        inside.load(part, source, slice(start - holder.start, stop - holder.start), transposed=transposed)

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        return torch.cat([part.multiply(x_TI, None if bias_O is None else bias_O[rows]) for rows, part in self.parts], dim=-1)

    def lookup(self, ids_T: Tensor) -> Tensor:
        return torch.cat([self._row(int(row)) for row in ids_T])

    def _row(self, row: int) -> Tensor:
        rows, part = next((rows, part) for rows, part in self.parts if row < rows.stop)
        return part.lookup(torch.tensor([row - rows.start], dtype=torch.int64, device="cpu"))


def format_of_parts(
    in_features: int,
    out_features: int,
    parts: Sequence[StoredPart],
    alike: Callable[[int, int, StoredMatrix | None], WeightFormat],
    mixed: Callable[[int, int], WeightFormat],
) -> WeightFormat:
    """Return one format for a matrix whose parts are stored alike, else a ``Fused`` one.

    ``alike`` returns the format of rows that are stored alike: (inputs, outputs, the first of their matrices; None: ordinary
    tensors). ``mixed`` returns one format for parts that differ and do not begin at multiples of 16 rows: (inputs, outputs).
    """
    runs: list[list[StoredPart]] = []
    for part in parts:
        if runs and are_stored_alike(runs[-1][0].matrix, part.matrix):
            runs[-1].append(part)
        else:
            runs.append([part])
    if len(runs) == 1:
        return alike(in_features, out_features, parts[0].matrix)
    if any(run[-1].stop % ROW_MULTIPLE for run in runs):
        return mixed(in_features, out_features)
    return Fused([alike(in_features, run[-1].stop - run[0].start, run[0].matrix) for run in runs])


def are_stored_alike(one: StoredMatrix | None, other: StoredMatrix | None) -> bool:
    """Whether two matrices are of one scheme, with their inputs in one order. None is an ordinary tensor."""
    if one is None or other is None:
        return one is other
    if one.spec != other.spec:
        return False
    orders = one.input_order(), other.input_order()
    if orders[0] is None or orders[1] is None:
        return orders[0] is orders[1]
    return torch.equal(orders[0], orders[1])
