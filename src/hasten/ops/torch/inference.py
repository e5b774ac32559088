"""``inference``: the state of PyTorch in which hasten computes, whatever state its caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def inference() -> Iterator[None]:
    """Record no gradients and compute in the dtypes of the operands. Also a decorator.

    An ambient ``torch.autocast`` would multiply float32 matrices in bfloat16.
    """
    with torch.inference_mode():
        if not torch.is_autocast_enabled("cpu"):
            yield
            return
        with torch.autocast("cpu", enabled=False):
            yield
