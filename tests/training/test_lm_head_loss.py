"""The blockwise loss and its gradients equal PyTorch's cross entropy and KL divergence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hasten.training import lm_head_loss as module
from hasten.training.lm_head_loss import Labels, lm_head_loss

ROWS, HIDDEN_SIZE, VOCAB_SIZE = 37, 12, 29


@pytest.fixture(params=[1, 5 * VOCAB_SIZE, 1 << 20], ids=["blocks of 1 row", "blocks of 5 rows", "one block"])
def values(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", request.param)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN_SIZE, generator=generator, dtype=torch.float64)
    lm_head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCAB_SIZE, (ROWS,), generator=generator)
    probs = torch.randn(ROWS, VOCAB_SIZE, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    return hidden.requires_grad_(), lm_head.requires_grad_(), ids, probs


def loss_and_gradients(loss, *inputs):
    return (loss.detach(), *torch.autograd.grad(2.5 * loss, inputs))


def test_hard_labels_alone_give_cross_entropy(values):
    hidden, lm_head, ids, _ = values
    actual = loss_and_gradients(lm_head_loss(hidden, lm_head, Labels(ids)), hidden, lm_head)
    expected = loss_and_gradients(F.cross_entropy(hidden @ lm_head.T, ids, reduction="sum"), hidden, lm_head)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_teacher_gives_kl_divergence(values, weight):
    hidden, lm_head, ids, probs = values
    labels = Labels(ids if weight else None, lambda a, b: probs[a:b].clone(), weight)
    actual = loss_and_gradients(lm_head_loss(hidden, lm_head, labels), hidden, lm_head)
    mixed = (1 - weight) * probs + weight * F.one_hot(ids, VOCAB_SIZE)
    kl = F.kl_div((hidden @ lm_head.T).log_softmax(-1), mixed, reduction="sum")
    torch.testing.assert_close(actual, loss_and_gradients(kl, hidden, lm_head))


def test_a_one_hot_teacher_gives_a_finite_loss(values):
    hidden, lm_head, ids, _ = values
    one_hot = F.one_hot(ids, VOCAB_SIZE).double()
    loss = lm_head_loss(hidden, lm_head, Labels(ids, lambda a, b: one_hot[a:b].clone(), 0.0))
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ lm_head.T, ids, reduction="sum"))


def test_a_frozen_lm_head_gets_no_gradient(values):
    hidden, lm_head, ids, _ = values
    lm_head_loss(hidden, lm_head.detach(), Labels(ids)).backward()
    assert hidden.grad is not None and lm_head.grad is None
    with torch.no_grad():
        assert not lm_head_loss(hidden, lm_head, Labels(ids)).requires_grad
