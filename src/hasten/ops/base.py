"""``Ops``: the few numeric operations of a decoder. The torch backend is their specification.

Shape suffixes: T tokens of the step (all rows concatenated) · H query heads · K key/value heads · D head dim · I in features ·
O out features · F feed-forward · B blocks · S slots of a block · L layers of a group · R rows.

The backend is chosen once, when the model is loaded. A faster op gives the same numbers within the bounds that its test states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowView:
    """One row: tokens ``[begin, end)`` of the step are slots ``[start, start + end - begin)``."""

    begin: int
    end: int
    start: int
    # The blocks of slots [first_block * S, ...): those before it fell out of the window. [block]
    blocks: Tensor
    first_block: int
    # The blocks are consecutive in the pool, so the row's keys and values are a plain slice of it.
    contiguous: bool
    # Of a draft tree: whether a token of the row sees another [token, token]. It sees a path and has the position
    # start + length of the path - 1. None: each token has the position of its slot and sees all before it.
    tree_tt: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PagedKv:
    """One layer's keys and values in the paged pool, and the place of this step's rows in it."""

    k_BSKD: Tensor
    v_BSKD: Tensor
    slots_T: Tensor  # int64: block * S + slot, where each token of the step is written
    rows: tuple[RowView, ...]


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """A query at position p sees the keys at (p - window, p]. ``scale`` multiplies q·k."""

    scale: float
    window: int | None = None


class Ops(Protocol):
    """One backend. All ops are pure unless their docstring says what they write."""

    name: str

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x Wᵀ + b [T, O], accumulated in float32, in the dtype of ``x``."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) · weight over the last dimension (Zhang & Sennrich, 2019).

        Computed in float32, rounded to the dtype of ``x``, then multiplied by ``weight``.
        """
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension (Ba et al., 2016).

        Computed in float32.
        """
        ...

    def rotate(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Rotate the pair (i, i + D/2) of each head by the angle of its position (Su et al., 2021).

        ``cos_TD`` and ``sin_TD`` are float32 and repeat after D/2. Computed in float32, rounded once to the dtype of ``x_THD``.
        """
        ...

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """silu(gate) · up of the fused projection [T, 2F], gates first. [T, F]"""
        ...

    def gelu(self, x: Tensor, *, tanh: bool) -> Tensor:
        """x · Φ(x) (Hendrycks & Gimpel, 2016), exact or by the tanh approximation."""
        ...

    def attend_dense(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: AttentionMask) -> Tensor:
        """Causal attention of one sequence over itself: softmax(scale · q kᵀ) v. [T, H, D]

        Query heads share key/value heads in groups.
        """
        ...

    def write_paged(self, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv) -> None:
        """Write k and v into the pool at ``kv.slots_T``."""
        ...

    def attend_paged(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv, mask: AttentionMask) -> Tensor:
        """Write k and v into the pool at ``kv.slots_T``, then attend each row over its positions. [T, H, D]

        Tokens of a draft tree see the slots before the row and their own paths.
        """
        ...
