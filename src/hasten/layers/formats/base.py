"""``WeightFormat``: a weight matrix as data. WeightFormatFactory own their parameters; ``Linear`` owns the bias."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class WeightFormat(Protocol):
    """One matrix [O, I]. Implementations are ``nn.Module`` so that their tensors move, save and train with the model."""

    name: str
    out_features: int
    in_features: int
    bits: float  # that a product reads for each weight

    def load(self, part: str, source: Tensor, rows: slice, *, transposed: bool) -> None:
        """Writes one checkpoint tensor into output rows ``rows`` of the parameter ``part``, converting its dtype.

        ``source`` is a memory-mapped view that is only valid during the call; ``transposed`` says that it is stored [I, O].
        """
        ...

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x Wᵀ + b in the dtype of ``x``. [T, O]"""
        ...

    def lookup(self, ids_T: Tensor) -> Tensor:
        """Rows ``ids_T`` of the matrix: what an embedding is. [T, I]"""
        ...


class WeightFormatFactory(Protocol):
    """Which format each kind of matrix gets when a decoder is built. Nothing is initialised."""

    def projection(self, in_features: int, out_features: int) -> WeightFormat:
        """A matrix inside a layer."""
        ...

    def lm_head(self, in_features: int, out_features: int) -> WeightFormat:
        """The vocabulary projection, the token embedding, or both at once."""
        ...

    def table(self, num_rows: int, size: int) -> WeightFormat:
        """Rows that are only looked up, such as learned positions."""
        ...
