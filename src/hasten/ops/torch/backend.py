"""``TorchOps``: every op of ``hasten.ops.base.Ops`` in PyTorch, differentiable except for the paged attention."""

from __future__ import annotations

from torch import Tensor

from hasten.ops.base import AttentionMask, PagedKv
from hasten.ops.torch.activation import gelu, silu_mul
from hasten.ops.torch.dense import attend_dense
from hasten.ops.torch.linear import WideningLinear, linear
from hasten.ops.torch.norm import layer_norm, rms_norm
from hasten.ops.torch.paged import attend_paged, write_paged
from hasten.ops.torch.rotate import rotate


class TorchOps:
    """The reference backend. ``widen``: multiply 16-bit weights in float32, for processors without bf16 arithmetic."""

    name = "torch"

    def __init__(self, *, widen: bool = False) -> None:
        self._linear = WideningLinear() if widen else linear

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self._linear(x_TI, weight_OI, bias_O)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(x, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        return layer_norm(x, weight, bias, eps)

    def rotate(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        return rotate(x_THD, cos_TD, sin_TD)

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        return silu_mul(gate_up_TF)

    def gelu(self, x: Tensor, *, tanh: bool) -> Tensor:
        return gelu(x, tanh=tanh)

    def attend_dense(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: AttentionMask) -> Tensor:
        return attend_dense(q_THD, k_TKD, v_TKD, mask)

    def write_paged(self, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv) -> None:
        write_paged(k_TKD, v_TKD, kv)

    def attend_paged(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv, mask: AttentionMask) -> Tensor:
        return attend_paged(q_THD, k_TKD, v_TKD, kv, mask)
