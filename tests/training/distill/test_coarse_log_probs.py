"""Coarse distributions against sums of probabilities in float64, and the data-processing inequality."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.training.distill.coarse_log_probs import coarse_log_probs, top_classes


def brute_force(logits_rV: Tensor, ids_rK: Tensor) -> Tensor:
    """Return log p of each token and log(1 - Σ p), by subtraction in float64."""
    probs_rV = logits_rV.double().softmax(-1)
    known_rK = probs_rV.gather(-1, ids_rK)
    return torch.cat((known_rK, 1 - known_rK.sum(-1, keepdim=True)), -1).log()


def kl(p_rC: Tensor, q_rC: Tensor) -> Tensor:
    return (p_rC.exp() * (p_rC - q_rC)).sum(-1)


@st.composite
def logits_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    rows, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    teacher, student = (torch.randn(rows, vocab, generator=generator) * scale for _ in range(2))
    return teacher, student, draw(st.integers(1, vocab))


@settings(max_examples=60, deadline=None)
@given(logits_pairs())
def test_the_divergence_of_classes_is_at_most_that_of_tokens(pair):
    teacher_rV, student_rV, k = pair
    ids_rK, teacher_rC = top_classes(teacher_rV, k)
    student_rC = coarse_log_probs(student_rV, ids_rK)
    for first, second, first_rV, second_rV in (
        (teacher_rC, student_rC, teacher_rV, student_rV),
        (student_rC, teacher_rC, student_rV, teacher_rV),
    ):
        full_r = kl(first_rV.log_softmax(-1), second_rV.log_softmax(-1))
        assert bool((kl(first, second) <= full_r * (1 + 1e-4) + 1e-5).all())
        if k == teacher_rV.shape[1]:
            torch.testing.assert_close(kl(first, second), full_r, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(logits_pairs())
def test_classes_equal_sums_in_float64(pair):
    teacher_rV, student_rV, k = pair
    ids_rK, teacher_rC = top_classes(teacher_rV, k)
    assert bool((ids_rK.sort(-1).values.diff(dim=-1) > 0).all())
    assert ids_rK.shape[-1] == k
    for logits_rV, log_probs_rC in ((teacher_rV, teacher_rC), (student_rV, coarse_log_probs(student_rV, ids_rK))):
        expected = brute_force(logits_rV, ids_rK)
        if k == logits_rV.shape[1]:
            expected = expected[:, :-1]  # no rest
        assert log_probs_rC.shape == expected.shape
        # Subtraction from 1 is exact to about 1e-15, so the probabilities are compared.
        torch.testing.assert_close(log_probs_rC.double().exp(), expected.exp(), rtol=1e-5, atol=1e-7)


def test_a_tiny_rest_keeps_its_digits():
    """1 - Σ p is 0 in float32 here."""
    logits = torch.tensor([[0.0, -30.0, -31.0]])
    rest = coarse_log_probs(logits, torch.tensor([[0]]))[0, 1]
    expected = torch.tensor([-30.0, -31.0], dtype=torch.float64).logsumexp(0)
    torch.testing.assert_close(rest.double(), expected, rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_dense_formula():
    generator = torch.Generator().manual_seed(0)
    teacher_rV, student_rV = (torch.randn(3, 12, generator=generator) * 2 for _ in range(2))
    ids_rK, teacher_rC = top_classes(teacher_rV, 4)
    student_rV.requires_grad_(True)
    (grad,) = torch.autograd.grad(kl(teacher_rC, coarse_log_probs(student_rV, ids_rK)).sum(), student_rV)
    dense_rV = student_rV.detach().double().requires_grad_(True)
    (expected,) = torch.autograd.grad(kl(teacher_rC.double(), brute_force(dense_rV, ids_rK)).sum(), dense_rV)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)
