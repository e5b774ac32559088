"""``has_file``: whether a file of a checkpoint is there, before anything opens it."""

from __future__ import annotations

import os
from pathlib import Path

from hasten.core.errors import CheckpointError


def has_file(file: Path) -> bool:
    """Return whether there is a regular file of this name.

    Raises ``CheckpointError`` for anything else of this name: opening a pipe would wait for a writer.
    """
    if os.path.isfile(file):
        return True
    if os.path.lexists(file):
        raise CheckpointError(f"{file} is not a readable file", remedy="Download the checkpoint again")
    return False
