"""``lm_head_loss``: distillation and cross-entropy loss with one block of logits in memory at a time.

Each block computes its logits, loss and gradient, then drops the logits. The logits of 4,096 tokens and a vocabulary of 150,000
would take 2.5 GB.

Shape suffixes: R rows · U teacher rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 23  # logits per block: 32 MiB in float32

Teacher = Callable[[int, int], Tensor]  # rows [a, b) -> their distribution [b - a, V], each row sums to 1


@dataclass(frozen=True, slots=True)
class Labels:
    """(1 - w) · teacher distribution + w · one-hot token, where w is ``hard_label_weight``."""

    ids_R: Tensor | None = None  # int64; None needs w = 0
    teacher: Teacher | None = None  # None needs w = 1
    hard_label_weight: float = 1.0
    row_weights_R: Tensor | None = None  # float32; None: 1 for every row


def teacher_probs(hidden_UE: Tensor, lm_head_VE: Tensor, repeat: int = 1) -> Teacher:
    """Return softmax(hidden Wᵀ) as a teacher whose rows each stand for ``repeat`` consecutive rows."""

    def probs(a: int, b: int) -> Tensor:
        first, last = a // repeat, -(-b // repeat)
        probs_UV = (hidden_UE[first:last] @ lm_head_VE.T).softmax(-1)
        return probs_UV[:, None].expand(-1, repeat, -1).flatten(0, 1)[a - first * repeat : b - first * repeat]

    return probs


def lm_head_loss(hidden_RE: Tensor, lm_head_VE: Tensor, labels: Labels) -> Tensor:
    """Return the sum over rows of KL(labels ‖ softmax(hidden Wᵀ)), a float32 scalar.

    Hard labels alone give cross entropy. Differentiable once, in ``hidden_RE`` and, if it requires a gradient, in ``lm_head_VE``.
    """
    assert labels.teacher is not None or labels.hard_label_weight == 1.0, labels.hard_label_weight
    if not torch.is_grad_enabled():
        hidden_RE, lm_head_VE = hidden_RE.detach(), lm_head_VE.detach()
    apply: Any = _LmHeadLoss.apply  # PyTorch has no annotation for it
    loss: Tensor = apply(hidden_RE, lm_head_VE, labels)
    return loss


class _LmHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RE: Tensor, lm_head_VE: Tensor, labels: Labels) -> Tensor:
        grad_RE = torch.empty_like(hidden_RE) if ctx.needs_input_grad[0] else None
        grad_VE = torch.zeros_like(lm_head_VE) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64)
        block = max(1, BLOCK_ELEMENTS // len(lm_head_VE))
        for a in range(0, len(hidden_RE), block):
            b = min(a + block, len(hidden_RE))
            loss, grad_logits_RV = _block_loss(hidden_RE[a:b] @ lm_head_VE.T, labels, a, b)
            total += loss
            if grad_RE is not None:
                torch.mm(grad_logits_RV, lm_head_VE, out=grad_RE[a:b])
            if grad_VE is not None:
                grad_VE.addmm_(grad_logits_RV.T, hidden_RE[a:b])
        ctx.save_for_backward(grad_RE, grad_VE)
        return total.to(hidden_RE.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_RE, grad_VE = (None if grad is None else grad * grads[0] for grad in ctx.saved_tensors)
        return grad_RE, grad_VE, None


def _block_loss(logits_RV: Tensor, labels: Labels, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Return the loss of rows [a, b), and its gradient by their logits: softmax minus labels."""
    logq_RV = logits_RV.log_softmax(-1)
    ids_R1 = None if labels.ids_R is None else labels.ids_R[a:b, None]
    if labels.teacher is None:
        assert ids_R1 is not None
        loss_R = -logq_RV.gather(-1, ids_R1)[:, 0].double()
        grad_RV = logq_RV.exp_()
        grad_RV.scatter_add_(-1, ids_R1, torch.full_like(ids_R1, -1.0, dtype=grad_RV.dtype))
    else:
        labels_RV = labels.teacher(a, b) * (1.0 - labels.hard_label_weight)
        if labels.hard_label_weight:
            assert ids_R1 is not None
            labels_RV.scatter_add_(-1, ids_R1, torch.full_like(ids_R1, labels.hard_label_weight, dtype=labels_RV.dtype))
        # xlogy is 0 where the label is 0, also where the logarithm is infinite.
        loss_R = (torch.xlogy(labels_RV, labels_RV) - labels_RV * logq_RV).sum(-1, dtype=torch.float64)
        grad_RV = logq_RV.exp_().sub_(labels_RV)
    if labels.row_weights_R is None:
        return loss_R.sum(), grad_RV
    weights_R = labels.row_weights_R[a:b]
    return (loss_R * weights_R).sum(), grad_RV.mul_(weights_R[:, None])
