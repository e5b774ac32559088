"""``TorchOps``: all ops of ``Ops`` in PyTorch, differentiable except for paged attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.ops.torch.attention import attend_dense, attend_paged, write_paged
from hasten.ops.torch.linear import WideningLinear


class TorchOps:
    """``widen``: multiply 16-bit weights in float32, for processors without bf16 arithmetic."""

    name = "torch"
    attend_dense = staticmethod(attend_dense)
    attend_paged = staticmethod(attend_paged)
    write_paged = staticmethod(write_paged)

    def __init__(self, *, widen: bool = False) -> None:
        self._linear = WideningLinear() if widen else F.linear

    def linear(self, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return self._linear(x_TI, weight_OI, bias_O)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def rotate(self, x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        left, right = x_THD.chunk(2, dim=-1)
        turned_THD = torch.cat((-right, left), dim=-1)
        return (x_THD * cos_TD[:, None] + turned_THD * sin_TD[:, None]).to(x_THD.dtype)

    def silu_mul(self, gate_up_TF: Tensor) -> Tensor:
        gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
        return F.silu(gate_TF) * up_TF

    def gelu(self, x: Tensor, *, tanh: bool) -> Tensor:
        return F.gelu(x, approximate="tanh" if tanh else "none")
