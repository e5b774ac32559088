"""Which backend computes, and why. Asked once, when a model is loaded; the answer is shown by ``hasten doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.core.errors import InvalidOption, nearest

if TYPE_CHECKING:
    from hasten.ops.base import Ops

DEVICES = ("cpu",)


def choose_ops(device: str) -> tuple[Ops, str]:
    """The fastest backend for a device and one sentence of reasons. Raises ``InvalidOption`` for a device without a backend."""
    if device not in DEVICES:
        raise InvalidOption("no backend computes on this device", got=repr(device), remedy=nearest(device, DEVICES))
    from hasten.ops.torch.backend import TorchOps

    if _bf16_arithmetic():
        return TorchOps(), "the PyTorch reference; this version has no native kernels"
    return (
        TorchOps(widen=True),
        "the PyTorch reference; this version has no native kernels; 16-bit weights are multiplied in float32, "
        "since this processor has no bf16 arithmetic",
    )


def _bf16_arithmetic() -> bool:
    """Whether PyTorch multiplies bf16 matrices at more than the speed of emulation. Only x86 says that it does not."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return capabilities.get("architecture") != "x86_64" or any(capabilities.get(n) for n in ("avx512_bf16", "amx_bf16"))
