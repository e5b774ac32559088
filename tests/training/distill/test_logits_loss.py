"""The blockwise loss and its gradients equal those of plain autograd over all logits at once."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from hasten.training.distill import logits_loss as module
from hasten.training.distill.logits_loss import logits_loss, logits_sums

ROWS, HIDDEN_SIZE, VOCAB_SIZE = 37, 12, 29


@pytest.fixture(params=[1, 5 * VOCAB_SIZE, 1 << 20], ids=["blocks of 1 row", "blocks of 5 rows", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", request.param)


def values(dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN_SIZE, generator=generator, dtype=torch.float64).to(dtype)
    lm_head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator, dtype=torch.float64).to(dtype)
    probs = torch.randn(rows, VOCAB_SIZE, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    return hidden.requires_grad_(), lm_head.requires_grad_(), probs


def reverse_kl(probs):
    """A loss that no formula of labels gives: the student's distribution stands before the logarithm."""

    def loss_of(start, stop, logits):
        logq = logits.log_softmax(-1)
        return (logq.exp() * (logq - probs[start:stop].log())).sum()

    return loss_of


def loss_and_gradients(loss, *inputs):
    return (loss.detach(), *torch.autograd.grad(2.5 * loss, inputs))


def test_the_gradients_equal_those_of_autograd(blocks):
    hidden, lm_head, probs = values()
    actual = loss_and_gradients(logits_loss(hidden, lm_head, reverse_kl(probs)), hidden, lm_head)
    expected = loss_and_gradients(reverse_kl(probs)(0, ROWS, hidden @ lm_head.T), hidden, lm_head)
    torch.testing.assert_close(actual, expected)


def test_the_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * VOCAB_SIZE)
    hidden, lm_head, probs = values(rows=3)
    assert torch.autograd.gradcheck(lambda h, w: logits_loss(h, w, reverse_kl(probs)), (hidden, lm_head))


def test_a_shared_weight_adds_up_with_its_other_uses(blocks):
    """Tied embeddings: the lm_head is also where the hidden states come from."""
    _, lm_head, probs = values()
    ids = torch.arange(ROWS) % VOCAB_SIZE
    actual = loss_and_gradients(logits_loss(lm_head[ids].tanh(), lm_head, reverse_kl(probs)), lm_head)
    expected = loss_and_gradients(reverse_kl(probs)(0, ROWS, lm_head[ids].tanh() @ lm_head.T), lm_head)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_no_block_grows_with_the_rows(monkeypatch, rows):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 5 * VOCAB_SIZE + 3)
    hidden, lm_head, _ = values(rows=rows)
    bounds, sizes = [], []

    def loss_of(start, stop, logits):
        bounds.append((start, stop))
        sizes.append(logits.numel())
        return logits.sum()

    logits_loss(hidden, lm_head, loss_of)
    assert max(sizes) <= 5 * VOCAB_SIZE
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(rows))


def test_logits_are_float32_under_autocast():
    """Hidden states may be bfloat16 there. Products of bfloat16 would be off by 1 in 256."""
    hidden, lm_head, probs = values(torch.float32)
    low = hidden.detach().bfloat16().requires_grad_()
    dtypes = set()

    def loss_of(start, stop, logits):
        dtypes.add((logits.dtype, (logits[:, :4] @ logits[:, :4].T).dtype))
        return reverse_kl(probs.float())(start, stop, logits)

    with torch.autocast("cpu", torch.bfloat16):
        loss = logits_loss(low, lm_head, loss_of)
        total = logits_sums(low, lm_head, loss_of, 1)[0]
    loss.backward()
    assert dtypes == {(torch.float32, torch.float32)} and loss.dtype == torch.float32
    assert low.grad.dtype == torch.bfloat16 and lm_head.grad.dtype == torch.float32
    expected = reverse_kl(probs.float())(0, ROWS, low.detach().float() @ lm_head.detach().T)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(total.float(), expected)


def test_a_frozen_side_gets_no_gradient(blocks):
    hidden, lm_head, probs = values()
    logits_loss(hidden, lm_head.detach(), reverse_kl(probs)).backward()
    assert hidden.grad is not None and lm_head.grad is None
    hidden.grad = None
    logits_loss(hidden.detach(), lm_head, reverse_kl(probs)).backward()
    assert hidden.grad is None and lm_head.grad is not None
    with torch.no_grad():
        loss = logits_loss(hidden, lm_head, reverse_kl(probs))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reverse_kl(probs)(0, ROWS, hidden @ lm_head.T).detach())


def test_sums_of_several_values(blocks):
    hidden, lm_head, probs = values()
    labels = probs.argmax(-1)

    def values_of(start, stop, logits):
        assert not torch.is_grad_enabled()
        hits = (logits.argmax(-1) == labels[start:stop]).sum()
        return torch.stack([F.cross_entropy(logits, labels[start:stop], reduction="sum"), hits.double()])

    logits = (hidden @ lm_head.T).detach()
    expected = [float(F.cross_entropy(logits, labels, reduction="sum")), int((logits.argmax(-1) == labels).sum())]
    assert logits_sums(hidden, lm_head, values_of, 2).tolist() == pytest.approx(expected, rel=1e-12)


def test_no_rows_give_zero_with_zero_gradients():
    hidden, lm_head, probs = values(rows=0)
    loss = logits_loss(hidden, lm_head, reverse_kl(probs))
    loss.backward()
    assert float(loss.detach()) == 0 and not bool(lm_head.grad.any()) and hidden.grad.shape == (0, HIDDEN_SIZE)
    assert logits_sums(hidden, lm_head, reverse_kl(probs), 3).tolist() == [0.0] * 3


def test_everything_is_computed_where_the_hidden_states_are(monkeypatch):
    """The meta device, which computes shapes alone, refuses operations with tensors of the CPU. It has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: contextlib.nullcontext())
    hidden, lm_head, probs = (value.detach().to("meta").requires_grad_() for value in values())
    loss = logits_loss(hidden, lm_head, reverse_kl(probs.detach()))
    loss.backward()
    sums = logits_sums(hidden, lm_head, reverse_kl(probs.detach()), 1)
    assert {loss.device.type, hidden.grad.device.type, lm_head.grad.device.type, sums.device.type} == {"meta"}
