"""``WeightFormat``: one weight matrix as data. A format owns its parameters; ``Linear`` owns the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hasten.layers.formats.conversion import Conversion
from hasten.layers.formats.stored_matrix import StoredMatrix


class NotFiniteWeights(ValueError):
    """A weight is NaN or infinite, as its format stores it."""


def check_finite(values: Tensor) -> None:
    """Raise ``NotFiniteWeights`` if a value is NaN or infinite.

    This takes one pass over the memory, as fast as a copy.
    """
    if values.numel() == 0:
        return
    low, high = values.detach().aminmax()  # both are NaN if any value is
    if not bool(low.isfinite() & high.isfinite()):
        raise NotFiniteWeights


@dataclass(frozen=True, slots=True)
class StoredPart:
    """Output rows ``[start, stop)`` of a matrix, as a checkpoint stores them."""

    start: int
    stop: int
    matrix: StoredMatrix | None  # None: an ordinary tensor


class WeightFormat(Protocol):
    """One matrix [O, I].

    Implementations are ``nn.Module``, so that their tensors move, save and train with the model.
    """

    out_features: int
    in_features: int
    bits: float  # that a product reads for each weight
    form: str  # how the matrix is kept, in words, such as "bfloat16"
    activations: str  # as products read their input: "float", "int16" or "int8"
    conversion: Conversion | None  # of a quantised matrix whose form rounds its weights

    def load(self, part: str, source: Tensor | StoredMatrix, rows: slice, *, transposed: bool) -> None:
        """Convert a checkpoint's tensor or matrix into the rows ``rows`` of the parameter ``part``.

        A tensor is a memory-mapped view that is only valid during the call. ``transposed``: it is stored as [I, O].
        Raises ``NotFiniteWeights`` for NaN and infinity, which quantised formats would turn into ordinary numbers.
        """
        ...

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return x Wᵀ + b in the dtype of ``x``. [T, O]"""
        ...

    def lookup(self, ids_T: Tensor) -> Tensor:
        """Return the rows ``ids_T`` of the matrix, as an embedding does. [T, I]"""
        ...


class WeightFormatFactory(Protocol):
    """Allocates the matrices of a decoder, each kind in its format, without initialising them."""

    def projection(self, in_features: int, out_features: int) -> WeightFormat:
        """Return a matrix inside a layer."""
        ...

    def lm_head(self, in_features: int, out_features: int) -> WeightFormat:
        """Return an lm_head, a token embedding, or one matrix for both."""
        ...

    def table(self, num_rows: int, size: int) -> WeightFormat:
        """Return a matrix that is only looked up, such as learned positions."""
        ...

    def stored(self, in_features: int, out_features: int, parts: Sequence[StoredPart]) -> WeightFormat:
        """Return a matrix whose rows, or some of them, are quantised in the checkpoint.

        ``parts`` covers its rows in order. Raises ``CheckpointError`` as ``StoredMatrix.input_order`` does.
        """
        ...

    def on_meta(self) -> WeightFormatFactory:
        """Return a factory of matrices without memory, which have the ``bits`` of this one's formats."""
        ...
