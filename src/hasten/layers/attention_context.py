"""Where attention finds the rest of the sequence: the decoder calls a context and knows no KV cache.

``DenseContext`` has no cache: each sequence attends over itself, with autograd. The engine's context reads the KV pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from hasten.layers.norm import Norm
from hasten.layers.qkv import prepare_qkv
from hasten.layers.rotary import RotaryTables
from hasten.layers.spec import AttentionSpec
from hasten.ops.base import Ops


class AttentionContext(Protocol):
    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        """Attention of layer ``layer`` for the tokens of the step, heads side by side. [T, H·D]

        Splits ``qkv_TX``, applies head norms and rotation, stores keys and values if the context keeps any, and attends.
        """
        ...


class FillContext(Protocol):
    def fill(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> None:
        """Stores what ``attend`` would store, for tokens that left before layer ``layer``."""
        ...


class DenseContext:
    """Whole sequences end to end, the first token of each at position 0::

    lengths (3, 2)   positions_T  0 1 2 0 1
    """

    def __init__(self, ops: Ops, tables: RotaryTables, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.ops = ops
        self.positions_T = torch.cat([torch.arange(n, device=device) for n in lengths])
        self._bounds = tuple(pairwise(accumulate(lengths, initial=0)))
        self._rotary = tables.at(self.positions_T)

    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        cos_sin = None if spec.rotary is None else self._rotary[spec.rotary]
        q_THD, k_TKD, v_TKD = prepare_qkv(self.ops, qkv_TX, spec, q_norm, k_norm, cos_sin)
        rows = [self.ops.attend_dense(q_THD[a:b], k_TKD[a:b], v_TKD[a:b], spec.mask) for a, b in self._bounds]
        return torch.cat(rows).flatten(1)
