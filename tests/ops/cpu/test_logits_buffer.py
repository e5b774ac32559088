"""Memory of logits is lent again, and never to two at a time."""

import pytest
import torch

from hasten.ops.cpu import logits_buffer
from hasten.ops.cpu.logits_buffer import LogitsBuffer


def test_what_nobody_holds_is_lent_again() -> None:
    memory = LogitsBuffer()
    first = memory.lend(4, 100)
    address = first.data_ptr()
    del first
    assert memory.lend(2, 100).data_ptr() == address


@pytest.mark.parametrize(
    "show", [lambda t: t, lambda t: t[1:3, :50], lambda t: t.numpy(), lambda t: torch.from_numpy(t.numpy()).T[5:]]
)
def test_what_anybody_still_shows_keeps_its_numbers(show) -> None:
    memory = LogitsBuffer()
    first = memory.lend(4, 100)
    first.fill_(7.0)
    shown = show(first)
    del first
    for _ in range(3):
        memory.lend(4, 100).fill_(-1.0)
    assert (shown == 7.0).all()


def test_it_grows(monkeypatch) -> None:
    memory = LogitsBuffer()
    memory.lend(1, 10)
    large = memory.lend(1000, 1000)
    large.fill_(1.0)
    assert large.shape == (1000, 1000) and large.is_contiguous() and large.dtype == torch.float32
    monkeypatch.setattr(logits_buffer, "MAX_RETAINED_BYTES", 100)
    assert memory.lend(1000, 1000).data_ptr() != large.data_ptr()
    assert memory.lend(0, 10).shape == (0, 10)
