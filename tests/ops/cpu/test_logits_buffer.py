"""``LogitsBuffer`` reuses its memory, and never while a tensor views it."""

import pytest
import torch

from hasten.ops.cpu import logits_buffer
from hasten.ops.cpu.logits_buffer import LogitsBuffer


def test_memory_without_views_is_lent_again() -> None:
    buffer = LogitsBuffer()
    first = buffer.lend(4, 100)
    address = first.data_ptr()
    del first
    assert buffer.lend(2, 100).data_ptr() == address


@pytest.mark.parametrize(
    "view_of", [lambda t: t, lambda t: t[1:3, :50], lambda t: t.numpy(), lambda t: torch.from_numpy(t.numpy()).T[5:]]
)
def test_memory_with_a_view_is_not_overwritten(view_of) -> None:
    buffer = LogitsBuffer()
    first = buffer.lend(4, 100)
    first.fill_(7.0)
    view = view_of(first)
    del first
    for _ in range(3):
        buffer.lend(4, 100).fill_(-1.0)
    assert (view == 7.0).all()


def test_memory_grows_up_to_the_limit(monkeypatch) -> None:
    buffer = LogitsBuffer()
    buffer.lend(1, 10)
    large = buffer.lend(1000, 1000)
    large.fill_(1.0)
    assert large.shape == (1000, 1000) and large.is_contiguous() and large.dtype == torch.float32
    monkeypatch.setattr(logits_buffer, "MAX_RETAINED_BYTES", 100)
    assert buffer.lend(1000, 1000).data_ptr() != large.data_ptr()
    assert buffer.lend(0, 10).shape == (0, 10)
