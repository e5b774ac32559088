"""``is_gguf``: whether a path names a GGUF file, without reading it."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIX = ".gguf"
MAGIC = b"GGUF"  # the first bytes of a file


def is_gguf(path: Path) -> bool:
    """Whether the model of this path is a GGUF file, by its suffix. A folder of such a name is none."""
    return path.suffix == SUFFIX and not os.path.isdir(path)
