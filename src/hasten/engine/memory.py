"""How much memory this process may still take, and sizes as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hasten.core.errors import InvalidOption

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def available_bytes() -> int:
    """What the system can give without swapping, within the limit of the process's control group."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        free = int(found.group(1)) * 1024 if found else free
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def parse_bytes(size: int | str) -> int:
    """``"4GiB"``, ``"500MB"`` or a number of bytes. Raises ``InvalidOption``."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    if found is None or found.group(2) not in _UNITS or float(found.group(1)) <= 0:
        raise InvalidOption("this is not an amount of memory", got=repr(size), allowed="bytes, or a size such as '4GiB' or '500MB'")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def format_bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
