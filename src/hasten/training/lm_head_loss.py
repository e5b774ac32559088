"""Cross entropy behind a vocabulary projection, without the logits of all rows in memory at a time.

For every block of rows the logits, their loss and the gradient are computed in one go, and the logits are dropped: of a batch of
4,096 tokens and 150,000 words they would be 2.5 GB. A row's target is a token, a teacher's distribution, or a mixture of the two.

Shape suffixes: R rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 23  # logits of a block: 32 MiB in float32

Teacher = Callable[[int, int], Tensor]  # rows [a, b) -> their distribution, sums to 1. [b - a, V]


@dataclass(frozen=True, slots=True)
class Target:
    """(1 - hard) · teacher + hard · the token itself; without a teacher the token alone. Each row counts ``weights_R`` times."""

    ids_R: Tensor  # int64
    teacher: Teacher | None = None
    hard: float = 1.0
    weights_R: Tensor | None = None  # float32; None: 1


def teacher(hidden_UE: Tensor, weight_VE: Tensor, several: int = 1) -> Teacher:
    """softmax(hidden Wᵀ), each of its rows for ``several`` rows that follow each other: it is computed once for them."""

    def distribution(a: int, b: int) -> Tensor:
        first, last = a // several, -(-b // several)
        shares_UV = (hidden_UE[first:last] @ weight_VE.T).softmax(-1)
        return shares_UV[:, None].expand(-1, several, -1).flatten(0, 1)[a - first * several : b - first * several]

    return distribution


def lm_head_loss(hidden_RE: Tensor, weight_VE: Tensor, target: Target) -> Tensor:
    """Σ over rows of KL(target ‖ softmax(hidden Wᵀ)), a scalar: for a token alone that is its cross entropy.

    Differentiable once, in ``hidden_RE`` and, if it requires a gradient, in ``weight_VE``. float32.
    """
    assert target.teacher is not None or target.hard == 1.0, target.hard
    if not torch.is_grad_enabled():
        hidden_RE, weight_VE = hidden_RE.detach(), weight_VE.detach()
    apply: Any = _LmHeadLoss.apply  # not annotated by PyTorch
    loss: Tensor = apply(hidden_RE, weight_VE, target)
    return loss


class _LmHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RE: Tensor, weight_VE: Tensor, target: Target) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_RE = torch.empty_like(hidden_RE) if wants_hidden else None
        grad_VE = torch.zeros_like(weight_VE) if wants_weight else None
        total = torch.zeros((), dtype=torch.float64)
        block = max(1, BLOCK_ELEMENTS // len(weight_VE))
        for a in range(0, len(hidden_RE), block):
            b = min(a + block, len(hidden_RE))
            loss, grad_logits = _block(hidden_RE[a:b] @ weight_VE.T, target, a, b)
            total += loss
            if grad_RE is not None:
                torch.mm(grad_logits, weight_VE, out=grad_RE[a:b])
            if grad_VE is not None:
                grad_VE.addmm_(grad_logits.T, hidden_RE[a:b])
        ctx.save_for_backward(grad_RE, grad_VE)
        return total.to(hidden_RE.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        grad_RE, grad_VE = ctx.saved_tensors
        return (
            None if grad_RE is None else grad_RE * grad,
            None if grad_VE is None else grad_VE * grad,
            None,
        )


def _block(logits_RV: Tensor, target: Target, a: int, b: int) -> tuple[Tensor, Tensor]:
    """The loss of rows [a, b) and its gradient by their logits: softmax minus target."""
    logq_RV = logits_RV.log_softmax(-1)
    ids_R1 = target.ids_R[a:b, None]
    if target.teacher is None:
        loss_R = -logq_RV.gather(-1, ids_R1)[:, 0].double()
        grad_RV = logq_RV.exp_()
        grad_RV.scatter_add_(-1, ids_R1, torch.full_like(ids_R1, -1.0, dtype=grad_RV.dtype))
        return _weighted(loss_R, grad_RV, target, a, b)
    wanted_RV = target.teacher(a, b) * (1.0 - target.hard)
    if target.hard:
        wanted_RV.scatter_add_(-1, ids_R1, torch.full_like(ids_R1, target.hard, dtype=wanted_RV.dtype))
    # xlogy is 0 where nothing is wanted, whatever its logarithm would be.
    loss_R = (torch.xlogy(wanted_RV, wanted_RV) - wanted_RV * logq_RV).sum(-1, dtype=torch.float64)
    return _weighted(loss_R, logq_RV.exp_().sub_(wanted_RV), target, a, b)


def _weighted(loss_R: Tensor, grad_RV: Tensor, target: Target, a: int, b: int) -> tuple[Tensor, Tensor]:
    if target.weights_R is None:
        return loss_R.sum(), grad_RV
    weights_R = target.weights_R[a:b]
    return (loss_R * weights_R).sum(), grad_RV.mul_(weights_R[:, None])
