"""``LogitsBuffer``: memory for logits that is reused from step to step.

64 rows of a vocabulary of 150,000 are 39 MB. Mapping and clearing that many new pages in every step takes more than a third of the
time of computing the logits.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.ops.cpu.native_tensor import new_rows

# Larger memory is not kept between steps: only the scoring of long prompts needs it.
MAX_RETAINED_BYTES = 256 << 20


class LogitsBuffer:
    """Lends the same memory again when no tensor that views it is alive, and other memory until then."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._borrower: Callable[[], Any] = lambda: None

    def lend(self, rows: int, width: int) -> Tensor:
        """Return an uninitialised float32 tensor [rows, width] that shares memory with no other live tensor."""
        num_bytes = 4 * rows * width
        if num_bytes == 0 or num_bytes > MAX_RETAINED_BYTES:
            return new_rows(rows, width)
        if self._memory is None or len(self._memory) < num_bytes or self._borrower() is not None:
            self._memory = _map_huge_pages(num_bytes)
        array = np.frombuffer(self._memory, np.float32, rows * width)
        # Every view of the returned tensor holds a reference to the array, and no other object does.
        self._borrower = weakref.ref(array)
        return torch.from_numpy(array).view(rows, width)


def _map_huge_pages(num_bytes: int) -> mmap.mmap:
    """Return anonymous memory, in huge pages where the system has them."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
