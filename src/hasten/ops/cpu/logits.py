"""Memory that logits are written to, lent step after step. It knows no model and no step.

64 rows of a vocabulary of 150,000 are 39 MB. Asked of the system in every step, that many pages are mapped and cleared anew, which
costs more than a third of computing what is written to them.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Larger memory is not kept between steps: only whoever scores whole prompts wants so many rows.
MOST_KEPT = 256 << 20


class LogitsMemory:
    """Lends one piece of memory again and again, but never while a tensor that shows it is alive: then there is another piece."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._borrower: Callable[[], Any] = lambda: None

    def lend(self, rows: int, width: int) -> Tensor:
        """Uninitialised float32 [rows, width], which no other living tensor shares."""
        num_bytes = 4 * rows * width
        if num_bytes == 0 or num_bytes > MOST_KEPT:
            return torch.empty(rows, width)
        if self._memory is None or len(self._memory) < num_bytes or self._borrower() is not None:
            self._memory = _huge(num_bytes)
        array = np.frombuffer(self._memory, np.float32, rows * width)
        # Every tensor that is made of this one holds the array, and nobody else does.
        self._borrower = weakref.ref(array)
        return torch.from_numpy(array).view(rows, width)


def _huge(num_bytes: int) -> mmap.mmap:
    """Anonymous memory, in huge pages where the system has them."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
