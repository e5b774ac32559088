"""``process_usage``: what this process has taken of the machine."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")  # sizes in pages: all, resident, ...


def process_usage() -> dict[str, Any]:
    """Return ``pid``, ``cpu_seconds`` and ``resident_bytes`` of this process, all its threads included.

    ``resident_bytes`` is None where the system does not say.
    """
    return {"pid": os.getpid(), "cpu_seconds": time.process_time(), "resident_bytes": _resident_bytes()}


def _resident_bytes() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None
