"""The tokens that a small model guesses from, in a file of its own beside the model's: ``draft_ids`` [D] int32, rising.

The model stays one that anybody loads; whoever knows the file reads a part of its vocabulary projection only (FR-Spec, Zhao et al.,
2025, arXiv 2502.14856).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hasten.core.errors import CheckpointError

FILE, NAME = "draft_ids.safetensors", "draft_ids"
_REMEDY = "Train the draft model again, or remove the file"


def read_draft_ids(folder: Path, vocab_size: int) -> Tensor | None:
    """[D] int64; None where there is no such file. Raises ``CheckpointError`` for one that says something else."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except SafetensorError as wrong:
        raise CheckpointError(f"{path} cannot be read: {wrong}", remedy=_REMEDY) from wrong
    if set(tensors) != {NAME}:
        raise CheckpointError(f"{path} holds other tensors", got=", ".join(sorted(tensors)) or "none", allowed=NAME)
    return checked_ids(tensors[NAME], vocab_size, path, remedy=_REMEDY)


def write_draft_ids(folder: Path, ids: Tensor) -> None:
    save_file({NAME: ids.to(torch.int32)}, folder / FILE, metadata={"format": "pt"})


def checked_ids(ids: Tensor, vocab_size: int, where: Path, *, remedy: str) -> Tensor:
    """Whole numbers of the vocabulary, rising: int64. Raises ``CheckpointError``."""
    sound = ids.dtype in (torch.int32, torch.int64) and ids.dim() == 1 and len(ids) > 0
    if not sound or int(ids[0]) < 0 or int(ids[-1]) >= vocab_size or bool((ids.diff() <= 0).any()):
        raise CheckpointError(
            f"draft_ids of {where} are no tokens to guess from",
            got=f"{ids.dtype} {list(ids.shape)}" + (f", {int(ids.min())} to {int(ids.max())}" if sound else ""),
            allowed=f"ids from 0 to {vocab_size - 1}, rising, each once",
            remedy=remedy,
        )
    return ids.long()
