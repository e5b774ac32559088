"""What a test compares of a written checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.models.dense import dense_logits

from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file but the model card, which names the folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "README.md"}


def hasten_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Return hasten's logits in float32, [B, S, V]."""
    decoder = load_decoder(folder, dtype="float32", ops=TorchOps()).decoder
    with torch.inference_mode():
        return dense_logits(decoder, ids.tolist()).view(*ids.shape, -1)
