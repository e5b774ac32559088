"""Running PyTorch on one thread beside native kernels.

The PyTorch operations of drafting and early exit take about 0.1 ms. Waking PyTorch's threads now and then takes 4 to 12 ms, because
the kernels' own thread pool has displaced them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hasten.core.draft import Draft
from hasten.speculative.drafters.base import Drafter, DraftRequest, TargetOutput


class SingleThreadDrafter:
    """A drafter that proposes with PyTorch on one thread."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return self.drafter.aux_layer_indices

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput) -> Sequence[Draft]:
        with single_thread():
            return self.drafter.propose(requests, output)


@contextmanager
def single_thread() -> Iterator[None]:
    """Limit PyTorch to the calling thread, and restore its number of threads afterwards."""
    num_threads = torch.get_num_threads()
    if num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
