"""``ChainContext``: attention of chains of guesses that begin at every position of a window at once (training-time test).

Li et al., 2025, arXiv 2503.01840. The chain of anchor a finds the keys that it would find if it were run alone: those of the
target's states at positions up to a, and those of its own guesses since, one position after the other::

    keys                         states of 0 1 2 3    guess 1 of 0 1 2 3    guess 2 of 0 1 2 3
    guess 2 of anchor 1 sees               x x . .               . x . .               . x . .      (its position is 1 + 2)

Every ``attend`` is the next guess of all chains, the first one (guess 0) on the states.

Shape suffixes: T tokens, window after window · B windows · W anchors, one per token of a window · S states · K key/value heads ·
G query heads per key/value head · D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.layers.norm import Norm
from hasten.layers.qkv import prepare_qkv
from hasten.layers.rotary import RotaryTables
from hasten.layers.spec import AttentionSpec
from hasten.ops.base import Ops


class ChainContext:
    """Of one layer. ``positions_T`` are those of the anchors."""

    def __init__(self, ops: Ops, tables: RotaryTables, num_windows: int, window: int) -> None:
        self._ops, self._tables, self._shape = ops, tables, (num_windows, window)
        self.positions_T = torch.arange(window).repeat(num_windows)
        self._keys: list[tuple[Tensor, Tensor]] = []  # of each guess so far: keys and values [B, W, K, D]

    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        """See ``AttentionContext``. Keys and values stay in the graph: a guess learns from what those after it need."""
        guess, window = len(self._keys), self._shape[1]
        rotary = None if spec.rotary is None else self._tables.at(self.positions_T + guess)[spec.rotary]
        q_THD, k_TKD, v_TKD = prepare_qkv(self._ops, qkv_TX, spec, q_norm, k_norm, rotary)
        self._keys.append((k_TKD.reshape(*self._shape, *k_TKD.shape[1:]), v_TKD.reshape(*self._shape, *v_TKD.shape[1:])))
        q_BWKGD = q_THD.reshape(*self._shape, spec.num_kv_heads, -1, spec.head_dim)
        k_BSKD, v_BSKD = self._keys[0]
        own = self._keys[self._first_own(guess, spec.window) :]
        states_BKGWS = torch.einsum("bwkgd,bskd->bkgws", q_BWKGD, k_BSKD).masked_fill(
            ~self._visible(guess, spec.window), -torch.inf
        )
        own_BKGW = [torch.einsum("bwkgd,bwkd->bkgw", q_BWKGD, keys) for keys, _ in own]
        shares = (torch.cat([states_BKGWS, *(scores[..., None] for scores in own_BKGW)], dim=-1) * spec.scale).softmax(-1)
        out_BWKGD = torch.einsum("bkgws,bskd->bwkgd", shares[..., :window], v_BSKD)
        for share_BKGW, (_, values) in zip(shares[..., window:].unbind(-1), own, strict=True):
            out_BWKGD = out_BWKGD + torch.einsum("bkgw,bwkd->bwkgd", share_BKGW, values)
        return out_BWKGD.flatten(0, 1).flatten(1)

    def _visible(self, guess: int, window: int | None) -> Tensor:
        """Which states guess ``guess`` of each anchor sees. [W, S]"""
        anchor = torch.arange(self._shape[1])
        distance = anchor[:, None] - anchor[None, :]
        return distance >= 0 if window is None else (distance >= 0) & (distance + guess < window)

    def _first_own(self, guess: int, window: int | None) -> int:
        """The first of a chain's own guesses that ``window`` leaves visible; guess 0 is among the states."""
        return 1 if window is None else max(1, guess - window + 1)
