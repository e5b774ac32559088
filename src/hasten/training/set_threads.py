"""``set_threads``: the threads of PyTorch in a training or a compression."""

from __future__ import annotations

import torch

from hasten.ops.cpu.cores import choose_threads


def set_threads(threads: int | None) -> None:
    """Set the number for the whole process; None: at most one thread per core that this process may use."""
    chosen = choose_threads(threads)
    if threads is not None or torch.get_num_threads() > chosen:
        torch.set_num_threads(chosen)
