"""The device of a training: the GPU where PyTorch has one, or the CPU."""

from __future__ import annotations

import torch

from hasten.core.errors import InvalidOption, show
from hasten.layers.rotary import RotaryTables
from hasten.models.decoder import Decoder
from hasten.training.names import DEVICES


def choose_device(name: str) -> str:
    """Return "cpu" or "cuda" for one of ``DEVICES``.

    Raises ``InvalidOption`` for another name, and for a GPU that is missing.
    """
    if name not in DEVICES:
        raise InvalidOption("unknown device", got=show(name), allowed=", ".join(DEVICES))
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InvalidOption("PyTorch finds no GPU", got="device=cuda", remedy="Choose cpu, or install PyTorch with CUDA")
    return "cuda" if available and name != "cpu" else "cpu"


def move_decoder(decoder: Decoder, device: str) -> None:
    """Move a loaded decoder, in place."""
    if device != "cpu":
        decoder.to(device)
        decoder.rotary = RotaryTables(decoder.spec.rotary_specs, device)
