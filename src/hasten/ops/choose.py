"""``choose_ops``: the torch backend for this processor; ``hasten doctor`` shows the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.ops.base import Ops


def choose_ops() -> tuple[Ops, str]:
    """Return the fastest form of the torch backend for this processor, and the reason for it."""
    import torch

    from hasten.ops.native_dtype import has_bf16_arithmetic
    from hasten.ops.torch.backend import TorchOps

    reason = "the PyTorch reference; this version has no native kernels"
    if has_bf16_arithmetic(torch.cpu.get_capabilities()):
        return TorchOps(), reason
    return TorchOps(widen=True), f"{reason}; 16-bit weights are multiplied in float32, since this processor has no bf16 arithmetic"
