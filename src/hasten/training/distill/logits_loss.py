"""``logits_loss``: any loss of logits, with one block of them in memory at a time.

Each block computes its logits, loss and gradient, then drops the logits. The logits of 4,096 tokens and a vocabulary of 150,000
would take 2.5 GB.

Shape suffixes: R rows · r rows of a block · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 23  # logits per block: 32 MiB in float32

LossOf = Callable[[int, int, Tensor], Tensor]  # rows [start, stop) and their logits [r, V] -> the sum of their losses


def logits_loss(hidden_RE: Tensor, lm_head_VE: Tensor, loss_of: LossOf) -> Tensor:
    """Return the sum of ``loss_of`` over blocks of rows, a scalar in float32.

    The logits hidden Wᵀ are float32, also under autocast; float64 inputs stay float64. ``loss_of`` is called at once, block by
    block, and returns a scalar. The result is differentiable once, in ``hidden_RE`` and ``lm_head_VE``, but in nothing else that
    ``loss_of`` reads.
    """
    if not torch.is_grad_enabled():
        hidden_RE, lm_head_VE = hidden_RE.detach(), lm_head_VE.detach()
    apply: Any = _LogitsLoss.apply  # PyTorch has no annotation for it
    loss: Tensor = apply(hidden_RE, lm_head_VE, loss_of)
    return loss


@torch.no_grad()
def logits_sums(hidden_RE: Tensor, lm_head_VE: Tensor, values_of: LossOf, count: int) -> Tensor:
    """Return the sums of the values [count] that ``values_of`` returns per block, in float64.

    They have no gradient. The logits are those of ``logits_loss``.
    """
    total = torch.zeros(count, dtype=torch.float64, device=hidden_RE.device)
    with torch.autocast(hidden_RE.device.type, enabled=False):
        for start, stop, _, logits_rV in _blocks(hidden_RE, lm_head_VE.to(_dtype(hidden_RE))):
            total += values_of(start, stop, logits_rV)
    return total


class _LogitsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RE: Tensor, lm_head_VE: Tensor, loss_of: LossOf) -> Tensor:
        dtype = _dtype(hidden_RE)
        grad_RE = torch.empty_like(hidden_RE, dtype=dtype) if ctx.needs_input_grad[0] else None
        grad_VE = torch.zeros_like(lm_head_VE, dtype=dtype) if ctx.needs_input_grad[1] else None
        weight_VE, total = lm_head_VE.to(dtype), torch.zeros((), dtype=torch.float64, device=hidden_RE.device)
        with torch.autocast(hidden_RE.device.type, enabled=False):
            for start, stop, block_rE, logits_rV in _blocks(hidden_RE, weight_VE):
                if grad_RE is None and grad_VE is None:
                    total += loss_of(start, stop, logits_rV)
                    continue
                loss, grad_rV = _with_gradient(loss_of, start, stop, logits_rV)
                total += loss
                if grad_RE is not None:
                    torch.mm(grad_rV, weight_VE, out=grad_RE[start:stop])
                if grad_VE is not None:
                    grad_VE.addmm_(grad_rV.T, block_rE)
        ctx.save_for_backward(grad_RE, grad_VE)
        ctx.dtypes = hidden_RE.dtype, lm_head_VE.dtype
        return total.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_RE, grad_VE = (
            None if grad is None else (grad * grads[0]).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return grad_RE, grad_VE, None


@torch.enable_grad()
def _with_gradient(loss_of: LossOf, start: int, stop: int, logits_rV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of a block and its gradient by the logits, both without a graph."""
    loss = loss_of(start, stop, logits_rV.requires_grad_())
    (grad_rV,) = torch.autograd.grad(loss, logits_rV)
    return loss.detach(), grad_rV


def _blocks(hidden_RE: Tensor, weight_VE: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield the bounds of each block, its hidden states [r, E] and its logits [r, V].

    Both have the dtype of ``weight_VE``.
    """
    size = max(1, BLOCK_ELEMENTS // len(weight_VE))
    for start in range(0, len(hidden_RE), size):
        block_rE = hidden_RE[start : start + size].to(weight_VE.dtype)
        yield start, start + len(block_rE), block_rE, block_rE @ weight_VE.T


def _dtype(hidden_RE: Tensor) -> torch.dtype:
    return torch.promote_types(hidden_RE.dtype, torch.float32)
