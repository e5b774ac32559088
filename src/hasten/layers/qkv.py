"""What every attention backend does first: split the fused projection, normalise heads, rotate."""

from __future__ import annotations

from torch import Tensor

from hasten.layers.norm import Norm
from hasten.layers.rotary import CosSin
from hasten.layers.spec import AttentionSpec
from hasten.ops.base import Ops


def prepare_qkv(
    ops: Ops, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None, cos_sin: CosSin | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, H, D], keys [T, K, D] and values [T, K, D]; the norms and the rotation that ``spec`` names are applied.

    ``qkv_TX`` is [q | k | v]. Results may be strided views of it or of one another.
    """
    heads = qkv_TX.view(qkv_TX.shape[0], -1, spec.head_dim)  # [T, H + K + K, D]
    num_rotated = spec.num_heads + spec.num_kv_heads
    v_TKD = heads[:, num_rotated:]
    if q_norm is None and k_norm is None:
        qk = heads[:, :num_rotated]
        if cos_sin is not None:
            qk = ops.rotate(qk, *cos_sin)
        return qk[:, : spec.num_heads], qk[:, spec.num_heads :], v_TKD
    assert q_norm is not None
    assert k_norm is not None
    q_THD, k_TKD = q_norm(heads[:, : spec.num_heads]), k_norm(heads[:, spec.num_heads : num_rotated])
    if cos_sin is not None:
        q_THD, k_TKD = ops.rotate(q_THD, *cos_sin), ops.rotate(k_TKD, *cos_sin)
    return q_THD, k_TKD, v_TKD
