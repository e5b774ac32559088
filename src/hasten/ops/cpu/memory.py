"""The memory this process may use, and amounts of memory as text."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hasten.ops.cpu.control_groups import ControlGroups


def available_bytes(meminfo: Path = Path("/proc/meminfo"), groups: ControlGroups | None = None) -> int:
    """Return the memory that is available without swapping, within the limits of the control groups."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if meminfo.exists():
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8"), re.MULTILINE)
        free = int(match.group(1)) * 1024 if match else free
    limited = (groups or ControlGroups()).free_bytes()
    return free if limited is None else min(free, limited)


def format_bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
