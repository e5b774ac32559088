"""The loss in blocks is PyTorch's own cross entropy and divergence, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hasten.training import lm_head_loss as module
from hasten.training.lm_head_loss import Target, lm_head_loss

ROWS, SIZE, WORDS = 37, 12, 29


@pytest.fixture(params=[1, 5 * WORDS, 1 << 20], ids=["a row at a time", "blocks of 5", "one block"])
def values(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", request.param)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)
    weight = torch.randn(WORDS, SIZE, generator=generator, dtype=torch.float64)
    ids = torch.randint(WORDS, (ROWS,), generator=generator)
    probs = torch.randn(ROWS, WORDS, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    return hidden.requires_grad_(), weight.requires_grad_(), ids, probs


def gradients(loss, *inputs):
    return (loss.detach(), *torch.autograd.grad(2.5 * loss, inputs))


def test_a_token_alone_is_cross_entropy(values):
    hidden, weight, ids, _ = values
    ours = gradients(lm_head_loss(hidden, weight, Target(ids)), hidden, weight)
    theirs = gradients(F.cross_entropy(hidden @ weight.T, ids, reduction="sum"), hidden, weight)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("hard", [0.0, 0.3])
def test_a_teacher_is_a_divergence(values, hard):
    hidden, weight, ids, probs = values
    ours = gradients(lm_head_loss(hidden, weight, Target(ids, lambda a, b: probs[a:b].clone(), hard)), hidden, weight)
    wanted = (1 - hard) * probs + hard * F.one_hot(ids, WORDS)
    theirs = gradients(F.kl_div((hidden @ weight.T).log_softmax(-1), wanted, reduction="sum"), hidden, weight)
    torch.testing.assert_close(ours, theirs)


def test_a_teacher_that_is_certain_gives_a_finite_loss(values):
    hidden, weight, ids, _ = values
    certain = F.one_hot(ids, WORDS).double()
    loss = lm_head_loss(hidden, weight, Target(ids, lambda a, b: certain[a:b].clone(), 0.0))
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, ids, reduction="sum"))


def test_a_frozen_projection_gets_no_gradient(values):
    hidden, weight, ids, _ = values
    lm_head_loss(hidden, weight.detach(), Target(ids)).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not lm_head_loss(hidden, weight, Target(ids)).requires_grad
