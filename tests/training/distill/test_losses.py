"""Every divergence equals its formula in exact sums of Python floats, TRL's values, and finite differences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.training.distill.losses import (
    divergence,
    forward_kl,
    generalized_js,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
)
from hasten.training.distill.recipe import LOSSES, SFT, DistillRecipe

KINDS = tuple(kind for kind in LOSSES if kind != SFT)


def kl(p, q):
    """Return KL(p ‖ q) of two lists of probabilities."""
    return math.fsum(a * math.log(a / b) if b else math.inf for a, b in zip(p, q, strict=True) if a)


def mixture(weight, p, q):
    return [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]


def formula(kind, p, q, beta, alpha):
    """Return a divergence by the formula of its paper."""
    if kind == "js" and 0 < beta < 1:
        mixed = mixture(beta, p, q)
        return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)
    forward = kind == "forward-kl" or (kind == "js" and beta == 0)
    if forward or (kind == "js" and beta == 1) or kind == "reverse-kl":
        return kl(p, q) if forward else kl(q, p)
    return kl(p, mixture(alpha, p, q)) if kind == "skew-kl" else kl(q, mixture(1 - alpha, p, q))


def logs(*rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=torch.float64).log().to(dtype)


@st.composite
def pairs_of_distributions(draw):
    """Two distributions over the same classes. Some classes have the probability 0 in one or both."""
    size = draw(st.integers(2, 6))
    weights = st.one_of(st.just(0.0), st.floats(1e-30, 1e-20), st.floats(0.01, 1.0))
    pair = [draw(st.lists(weights, min_size=size, max_size=size).filter(lambda row: sum(row) > 0)) for _ in range(2)]
    return [[weight / math.fsum(row) for weight in row] for row in pair]


shares = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.001, 0.999))


@settings(deadline=None, max_examples=150)
@given(pair=pairs_of_distributions(), beta=shares, alpha=shares, kind=st.sampled_from(KINDS))
def test_every_divergence_equals_its_formula(pair, beta, alpha, kind):
    p, q = pair
    actual = float(divergence(kind, logs(p), logs(q), beta=beta, alpha=alpha))
    assert actual == pytest.approx(formula(kind, p, q, beta, alpha), rel=1e-9, abs=1e-12)
    assert actual > -1e-12
    single = float(divergence(kind, logs(p, dtype=torch.float32), logs(q, dtype=torch.float32), beta=beta, alpha=alpha))
    assert single == pytest.approx(actual, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=100)
@given(pair=pairs_of_distributions(), beta=st.floats(0.01, 0.99), alpha=st.floats(0.01, 0.99), kind=st.sampled_from(KINDS))
def test_a_class_without_probability_on_one_side_has_a_finite_gradient(pair, beta, alpha, kind):
    """Only where the divergence itself is finite; there a gradient is no NaN."""
    p, q = (logs(row).requires_grad_() for row in pair)
    loss = divergence(kind, p, q, beta=beta, alpha=alpha).sum()
    if math.isfinite(loss.detach()):
        assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(loss, (p, q)))


def test_mixed_divergences_are_finite_between_distributions_without_a_common_class():
    p, q = logs([1.0, 0.0, 0.0]), logs([0.0, 1.0, 0.0])
    assert math.isinf(forward_kl(p, q)) and math.isinf(reverse_kl(p, q))
    assert float(generalized_js(p, q, 0.5)) == pytest.approx(math.log(2))
    assert float(skew_kl(p, q, 0.1)) == float(skew_reverse_kl(p, q, 0.1)) == pytest.approx(math.log(10))


def random_logits(rows=4, classes=7, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)
    return (scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.1), (0.9, 0.7), (0.0, 0.0), (1.0, 1.0)])
def test_gradients_equal_finite_differences(kind, beta, alpha):
    """Through the softmax, by the logits of both sides, as training takes them."""
    teacher, student = (logits.requires_grad_() for logits in random_logits())

    def losses(teacher, student):
        return divergence(kind, teacher.log_softmax(-1), student.log_softmax(-1), beta=beta, alpha=alpha)

    assert losses(teacher, student).shape == (4,)
    assert torch.autograd.gradcheck(losses, (teacher, student))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beta", "alpha"), [(0.5, 0.1), (0.2, 0.9), (0.0, 0.0), (1.0, 1.0)])
def test_equal_distributions_diverge_by_zero(kind, beta, alpha):
    logits = random_logits(dtype=torch.float32)[0]
    logprobs = logits.log_softmax(-1).requires_grad_()
    losses = divergence(kind, logits.log_softmax(-1), logprobs, beta=beta, alpha=alpha)
    assert float(losses.detach().abs().max()) < 1e-6


def test_js_is_symmetric_at_one_half_and_only_there():
    p, q = random_logits().log_softmax(-1)
    torch.testing.assert_close(generalized_js(p, q, 0.5), generalized_js(q, p, 0.5))
    torch.testing.assert_close(generalized_js(p, q, 0.2), generalized_js(q, p, 0.8))
    assert not torch.allclose(generalized_js(p, q, 0.2), generalized_js(q, p, 0.2))


def test_the_limits_of_beta_and_alpha():
    """JS divided by its weight tends to the KL whose value it takes at the end. Skew losses tend to the plain ones."""
    p, q = random_logits(scale=1.0).log_softmax(-1)
    small = 1e-6
    torch.testing.assert_close(generalized_js(p, q, small) / small, forward_kl(p, q), rtol=1e-4, atol=0)
    torch.testing.assert_close(generalized_js(p, q, 1 - small) / small, reverse_kl(p, q), rtol=1e-4, atol=0)
    torch.testing.assert_close(generalized_js(p, q, 0.0), forward_kl(p, q))
    torch.testing.assert_close(generalized_js(p, q, 1.0), reverse_kl(p, q))
    torch.testing.assert_close(skew_kl(p, q, small), forward_kl(p, q), rtol=1e-4, atol=0)
    torch.testing.assert_close(skew_reverse_kl(p, q, small), reverse_kl(p, q), rtol=1e-4, atol=0)
    assert not bool(skew_kl(p, q, 1.0).any()) and not bool(skew_reverse_kl(p, q, 1.0).any())


def test_small_probabilities_count_in_float32():
    """A class of probability e^-90, below the smallest normal float32: a sum of probabilities would lose it."""
    student = torch.tensor([[0.0, -90.0]]).log_softmax(-1)
    teacher = torch.tensor([[0.0, 0.0]]).log_softmax(-1)
    p, q = [0.5, 0.5], [1 - math.exp(-90), math.exp(-90)]
    for beta, alpha in ((0.5, 1e-3), (0.0, 1e-38)):
        for kind in ("forward-kl", "js", "skew-kl"):
            actual = float(divergence(kind, teacher, student, beta=beta, alpha=alpha))
            assert actual == pytest.approx(formula(kind, p, q, beta, alpha), rel=1e-5), kind


ORACLE = json.loads((Path(__file__).parent / "trl_losses.json").read_text())


@pytest.mark.parametrize("case", ORACLE["cases"], ids=lambda case: f"beta {case['beta']}, T {case['temperature']}")
def test_the_loss_and_its_gradient_equal_those_of_trl(case):
    teacher, student = (torch.tensor(ORACLE[f"{side}_logits"], dtype=torch.float64) for side in ("teacher", "student"))
    student.requires_grad_()
    logprobs = ((logits / case["temperature"]).log_softmax(-1) for logits in (teacher, student))
    losses = divergence("js", *logprobs, beta=case["beta"], alpha=DistillRecipe().alpha)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    torch.testing.assert_close(losses.detach(), torch.tensor(case["loss"], dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.tensor(case["gradient"], dtype=torch.float64))
