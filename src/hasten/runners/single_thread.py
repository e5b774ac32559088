"""A drafter beside native kernels: PyTorch's threads sleep while it guesses.

What it computes with PyTorch is small, and waking threads that the kernels' own have just displaced costs more than it saves:
4 to 12 ms now and then, against 0.1 ms for the work itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hasten.core.draft import Draft
from hasten.speculative.drafters.base import Drafter, DraftRequest, TargetOutput


class SingleThreadDrafter:
    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return self.drafter.aux_layer_indices

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> Sequence[Draft]:
        with single_thread():
            return self.drafter.propose(lines, seen)


@contextmanager
def single_thread() -> Iterator[None]:
    """PyTorch computes on the calling thread alone; afterwards as before."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
