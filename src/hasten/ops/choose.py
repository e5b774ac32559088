"""``choose_ops``: the torch backend for this processor; ``hasten doctor`` shows the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.ops.base import Ops


def choose_ops() -> tuple[Ops, str]:
    """Return the fastest form of the torch backend for this processor, and the reason for it."""
    from hasten.ops.torch.backend import TorchOps

    reason = "the PyTorch reference; this version has no native kernels"
    if _has_bf16_arithmetic():
        return TorchOps(), reason
    return TorchOps(widen=True), f"{reason}; 16-bit weights are multiplied in float32, since this processor has no bf16 arithmetic"


def _has_bf16_arithmetic() -> bool:
    """Whether PyTorch multiplies bf16 matrices without emulation. Only x86 reports that it does not."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") != "x86_64" or any(capabilities.get(n) for n in ("avx512_bf16", "amx_bf16"))
