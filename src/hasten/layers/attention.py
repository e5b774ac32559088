"""``Attention``: the projections around the attention that an ``AttentionContext`` computes.

The context finds the keys and values of the earlier tokens, so attention knows no KV cache. The engine's context reads the KV pool;
``DenseContext`` needs no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from hasten.layers.layer_context import LayerContext
from hasten.layers.linear import Linear
from hasten.layers.norm import Norm
from hasten.layers.rotary import CosSin, RotaryTables
from hasten.layers.spec import AttentionSpec
from hasten.ops.base import Ops


class AttentionContext(Protocol):
    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        """Return the attention output of ``layer`` for the tokens of the step, heads concatenated. [T, H·D]

        Splits ``qkv_TX``, applies head norms and rotation, stores keys and values if the context has a cache, and attends.
        """
        ...


class FillKvContext(Protocol):
    def fill_kv(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> None:
        """Store the keys and values that ``attend`` would store, for tokens that exited before ``layer``."""
        ...


class DenseContext:
    """Attention of each sequence over itself, without a cache and with autograd.

    The sequences are concatenated; the first token of each has position 0::

        lengths (3, 2)   positions_T  0 1 2 0 1
    """

    def __init__(self, ops: Ops, tables: RotaryTables, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.ops = ops
        self.positions_T = torch.cat([torch.arange(n, dtype=torch.int64, device=device) for n in lengths])
        self._bounds = tuple(pairwise(accumulate(lengths, initial=0)))
        self._rotary = tables.at(self.positions_T)

    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        cos_sin = None if spec.rotary is None else self._rotary[spec.rotary]
        q_THD, k_TKD, v_TKD = prepare_qkv(self.ops, qkv_TX, spec, q_norm, k_norm, cos_sin)
        outputs = [self.ops.attend_dense(q_THD[a:b], k_TKD[a:b], v_TKD[a:b], spec.mask) for a, b in self._bounds]
        return torch.cat(outputs).flatten(1)


class Attention(nn.Module):
    """``qkv`` is one projection with rows [q; k; v]; ``q_norm`` and ``k_norm`` normalise each head.

    ``in_features`` is the input width where it differs from the hidden size.
    """

    def __init__(self, spec: AttentionSpec, hidden_size: int, layer_context: LayerContext, in_features: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        formats, norm = layer_context.formats, spec.qk_norm
        qkv_format = formats.projection(in_features or hidden_size, spec.qkv_size)
        self.qkv = Linear(qkv_format, bias=spec.qkv_bias, layer_context=layer_context)
        self.out = Linear(formats.projection(spec.q_size, hidden_size), bias=spec.out_bias, layer_context=layer_context)
        self.q_norm = None if norm is None else Norm(norm, spec.head_dim, layer_context)
        self.k_norm = None if norm is None else Norm(norm, spec.head_dim, layer_context)

    def forward(self, x_TE: Tensor, layer: int, context: AttentionContext) -> Tensor:
        attended = context.attend(layer, self.qkv(x_TE), self.spec, self.q_norm, self.k_norm)  # [T, H·D]
        out_TE: Tensor = self.out(attended)
        return out_TE

    def fill_kv(self, x_TE: Tensor, layer: int, context: FillKvContext) -> None:
        context.fill_kv(layer, self.qkv(x_TE), self.spec, self.q_norm, self.k_norm)


def prepare_qkv(
    ops: Ops, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None, cos_sin: CosSin | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [T, H, D], keys [T, K, D] and values [T, K, D].

    ``qkv_TX`` is [q | k | v]. Queries and keys are normalised and rotated as ``spec`` says. Results may be strided views of it
    or of one another.
    """
    heads = qkv_TX.view(qkv_TX.shape[0], -1, spec.head_dim)  # [T, H + K + K, D]
    num_heads, num_rotated = spec.num_heads, spec.num_heads + spec.num_kv_heads
    qk = heads[:, :num_rotated]
    if q_norm is not None and k_norm is not None:
        qk = torch.cat((q_norm(qk[:, :num_heads]), k_norm(qk[:, num_heads:])), dim=1)
    if cos_sin is not None:
        qk = ops.rotate(qk, *cos_sin)
    return qk[:, :num_heads], qk[:, num_heads:], heads[:, num_rotated:]
