"""Divergences between a teacher's and a student's distribution, one value per position.

All take log-probabilities over the same classes, of which some may be -inf. p is the teacher's distribution and q the student's.
The results are in nats and differentiable in both arguments. Probabilities are mixed as logarithms, so that small ones count.

Shape suffixes: R positions · C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLOOR = -1e9


def divergence(kind: str, teacher_RC: Tensor, student_RC: Tensor, *, beta: float, alpha: float) -> Tensor:
    """Return the divergence that ``DistillRecipe.loss`` names, [R].

    ``beta`` is of js, and ``alpha`` of the skew losses.
    """
    match kind:
        case "forward-kl":
            return forward_kl(teacher_RC, student_RC)
        case "reverse-kl":
            return reverse_kl(teacher_RC, student_RC)
        case "js":
            return generalized_js(teacher_RC, student_RC, beta)
        case "skew-kl":
            return skew_kl(teacher_RC, student_RC, alpha)
    assert kind == "skew-reverse-kl", kind
    return skew_reverse_kl(teacher_RC, student_RC, alpha)


def forward_kl(teacher_RC: Tensor, student_RC: Tensor) -> Tensor:
    """Return KL(p ‖ q), [R]: infinite where a class has p > 0 and q = 0."""
    return _kl(teacher_RC, student_RC)


def reverse_kl(teacher_RC: Tensor, student_RC: Tensor) -> Tensor:
    """Return KL(q ‖ p), [R]: infinite where a class has q > 0 and p = 0.

    It is that of MiniLLM (Gu et al., 2024, arXiv 2306.08543).
    """
    return _kl(student_RC, teacher_RC)


def generalized_js(teacher_RC: Tensor, student_RC: Tensor, beta: float) -> Tensor:
    """Return β KL(p ‖ m) + (1 - β) KL(q ‖ m), where m = β p + (1 - β) q, [R].

    It is finite, at most log 2, and symmetric for β = 0.5. Near the ends it is about β KL(p ‖ q) and (1 - β) KL(q ‖ p). At the
    ends, where it would vanish, 0 gives KL(p ‖ q) and 1 gives KL(q ‖ p) (GKD, Agarwal et al., 2024, arXiv 2306.13649; TRL).
    """
    if beta == 0:
        return forward_kl(teacher_RC, student_RC)
    if beta == 1:
        return reverse_kl(teacher_RC, student_RC)
    mixed_RC = _mixture(teacher_RC, student_RC, beta)
    return beta * _kl(teacher_RC, mixed_RC) + (1 - beta) * _kl(student_RC, mixed_RC)


def skew_kl(teacher_RC: Tensor, student_RC: Tensor, alpha: float) -> Tensor:
    """Return KL(p ‖ α p + (1 - α) q), [R]: at most -log α (DistiLLM, Ko et al., 2024, arXiv 2402.03898)."""
    return _kl(teacher_RC, _mixture(teacher_RC, student_RC, alpha))


def skew_reverse_kl(teacher_RC: Tensor, student_RC: Tensor, alpha: float) -> Tensor:
    """Return KL(q ‖ (1 - α) p + α q), [R]: at most -log α (DistiLLM)."""
    return _kl(student_RC, _mixture(student_RC, teacher_RC, alpha))


def _kl(p_RC: Tensor, q_RC: Tensor) -> Tensor:
    """Return Σ p (log p - log q) of two log-distributions, [R].

    A class with p = 0 adds nothing, whatever q is.
    """
    probs_RC = p_RC.exp()
    # Infinite differences are replaced before the product: 0 · ∞ is NaN, and so would be its gradient.
    return (probs_RC * (p_RC - q_RC).masked_fill(probs_RC == 0, 0.0)).sum(-1)


def _mixture(p_RC: Tensor, q_RC: Tensor, weight: float) -> Tensor:
    """Return log(w p + (1 - w) q) of two log-distributions, [R, C]."""
    if weight in (0, 1):
        return p_RC if weight else q_RC
    # The gradient of logaddexp is NaN where both are -inf. The floor is the logarithm of 0 in every arithmetic.
    return torch.logaddexp(p_RC.clamp_min(_FLOOR) + math.log(weight), q_RC + math.log1p(-weight))
