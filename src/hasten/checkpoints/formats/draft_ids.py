"""The draft vocabulary of a draft model, in a file beside its weights.

The file has one tensor, ``draft_ids`` [D] int32, rising. The draft model stays loadable without the file. With it, only these
rows of its lm_head are computed (FR-Spec, Zhao et al., 2025, arXiv 2502.14856).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hasten.checkpoints.shards import MAX_LISTED, HeaderError, read_header
from hasten.checkpoints.write_tensors import write_tensors
from hasten.core.errors import CheckpointError

DRAFT_IDS, DRAFT_IDS_FILE = "draft_ids", "draft_ids.safetensors"
_REMEDY = "Train the draft model again, or remove the file"


def read_draft_ids(folder: Path, vocab_size: int) -> Tensor | None:
    """Return the draft vocabulary, [D] int64, or None without a file.

    Raises ``CheckpointError`` for an invalid file.
    """
    path = folder / DRAFT_IDS_FILE
    if not os.path.lexists(path):
        return None
    try:
        entries = read_header(path)
        if [entry.name for entry in entries] != [DRAFT_IDS]:
            names = ", ".join(entry.name for entry in entries[:MAX_LISTED])
            raise CheckpointError(f"{path} has other tensors", got=names or "none", allowed=DRAFT_IDS, remedy=_REMEDY)
        ids = load_file(path)[DRAFT_IDS]
    except (HeaderError, SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", remedy=_REMEDY) from error
    return check_draft_ids(ids, vocab_size, path, remedy=_REMEDY)


def write_draft_ids(folder: Path, ids: Tensor) -> None:
    write_tensors({DRAFT_IDS: ids.to(torch.int32)}, folder / DRAFT_IDS_FILE)


def check_draft_ids(ids: Tensor, vocab_size: int, path: Path, *, remedy: str) -> Tensor:
    """Return the ids as int64.

    Raises ``CheckpointError`` unless they are rising token ids of the vocabulary.
    """
    is_list = ids.dtype in (torch.int32, torch.int64) and ids.dim() == 1 and 0 < len(ids) <= vocab_size
    if not is_list or int(ids[0]) < 0 or int(ids[-1]) >= vocab_size or bool((ids.diff() <= 0).any()):
        raise CheckpointError(
            f"draft_ids of {path} are not a draft vocabulary",
            got=f"{ids.dtype} {list(ids.shape)}" + (f", {int(ids.min())} to {int(ids.max())}" if is_list else ""),
            allowed=f"ids from 0 to {vocab_size - 1}, rising, each once",
            remedy=remedy,
        )
    return ids.long()
