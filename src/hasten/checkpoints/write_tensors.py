"""``write_tensors``: a safetensors file with the permissions of an ordinary new file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write contiguous tensors by name, or replace the file.

    Raises ``SafetensorError`` and ``OSError``.
    """
    from safetensors.torch import save_file  # readers of headers, such as the server, need no torch

    file.touch()
    mode = file.stat().st_mode & 0o777
    save_file(dict(tensors), file, metadata={"format": "pt"})
    # The library replaces the file by one that only its owner may read, and a server may run as another user.
    file.chmod(mode)
