"""``cache_folder``: where hasten keeps files that it can make again."""

from __future__ import annotations

import os
from pathlib import Path

from hasten.core.errors import HastenError


def cache_folder() -> Path:
    """Return ``$HASTEN_CACHE``, or the folder ``hasten`` in the user's cache folder; make it if necessary.

    Only the user may read it, because what models have said may be private. Raises ``HastenError``.
    """
    folder = Path(os.environ.get("HASTEN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hasten")
    try:
        folder = folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise HastenError(
            "hasten's cache folder cannot be made", got=f"{folder}: {error}", remedy="Set HASTEN_CACHE to a writable folder"
        ) from None
    return folder
