"""``autocast``: the arithmetic of a training step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hasten.ops.native_dtype import has_bf16_arithmetic


def autocast(precision: str, device: str = "cpu") -> AbstractContextManager[Any]:
    """Return the context in which a loss is computed. ``precision`` is one of ``PRECISIONS``."""
    native = device != "cpu" or has_bf16_arithmetic(torch.cpu.get_capabilities())
    if precision == "bfloat16" or (precision == "auto" and native):
        return torch.autocast(device, torch.bfloat16)
    return nullcontext()
