"""``WeightFormat``: a weight matrix as data. Formats own their parameters; ``Linear`` owns the bias."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class WeightFormat(Protocol):
    """One matrix [O, I]. Implementations are ``nn.Module`` so that their tensors move, save and train with the model."""

    name: str
    out_features: int
    in_features: int

    def load(self, part: str, source: Tensor, rows: slice, *, transposed: bool) -> None:
        """Writes one checkpoint tensor into output rows ``rows`` of the parameter ``part``, converting its dtype.

        ``source`` is a memory-mapped view that is only valid during the call; ``transposed`` says that it is stored [I, O].
        """
        ...

    def multiply(self, x_TI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x Wᵀ + b in the dtype of ``x``. [T, O]"""
        ...
