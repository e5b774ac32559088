"""The few numeric operations a decoder is made of, one signature each. The torch backend is their specification.

Shape suffixes: T tokens of the step (all rows end to end) · H query heads · K key/value heads · D head dim · I in features ·
O out features · F feed-forward · B blocks · S slots of a block · L layers of a group · R rows.

A backend is chosen once, when the model is loaded. Each op may be replaced by a faster one that gives the same numbers within
the bounds that its test states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowView:
    """Where one row of the step lies: tokens ``[begin, end)`` of the step are slots ``[start, start + end - begin)``."""

    begin: int
    end: int
    start: int
    # The blocks of slots [first_block * S, ...): those before it fell out of the window. [block]
    blocks: Tensor
    first_block: int
    # The blocks are consecutive in the pool, so the row's keys and values are a plain slice of it.
    contiguous: bool
    # Of a row that branches: whether a token of the row sees another [token, token]. It sees a path and stands at the position
    # start + number of them - 1. None: each stands at the position of its slot and sees all before it.
    tree_tt: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PagedKv:
    """One layer's keys and values in the paged pool, and where this step's rows lie in it."""

    k_BSKD: Tensor
    v_BSKD: Tensor
    slots_T: Tensor  # int64: block * S + slot, where each token of the step is written
    rows: tuple[RowView, ...]


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """Which keys a query at position p may see: those at (p - window, p]. ``scale`` multiplies q·k."""

    scale: float
    window: int | None = None


class Ops(Protocol):
    """One backend. All ops are pure unless they say what they write."""

    name: str

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """x Wᵀ + b [T, O], accumulated in float32, in the dtype of ``x``."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) · weight over the last dimension, computed in float32 (Zhang & Sennrich, 2019)."""
        ...

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor: ...

    def rotate(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Rotary embedding (Su et al., 2021), halves convention: dimension i is paired with i + D/2."""
        ...

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        """silu(gate) · up of the fused projection [T, 2F], gates first. [T, F]"""
        ...

    def gelu(self, x: Tensor, *, tanh: bool) -> Tensor: ...

    def attend_dense(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: AttentionMask) -> Tensor:
        """Causal attention of one sequence over itself. [T, H, D]"""
        ...

    def write_paged(self, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv) -> None:
        """Writes k and v into the pool at ``kv.slots_T``."""
        ...

    def attend_paged(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv, mask: AttentionMask) -> Tensor:
        """Writes k and v into the pool at ``kv.slots_T``, then attends each row over its own positions so far. [T, H, D]

        Tokens of a row that branches see the slots before the row and their own paths.
        """
        ...
