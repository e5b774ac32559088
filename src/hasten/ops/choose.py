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

    return TorchOps(), "the PyTorch reference; this version has no native kernels"
