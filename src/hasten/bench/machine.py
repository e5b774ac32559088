"""``Machine``: processor, instruction sets and memory of this machine. It measures nothing."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

# name in /proc/cpuinfo -> common name
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON-DOT",
    "i8mm": "I8MM",
    "sve": "SVE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The hardware, and the limits of this process's control group."""

    cpu: str
    architecture: str
    system: str
    logical_cores: int
    usable_cores: int  # on which this process may run
    core_limit: float | None  # None: no limit
    memory: int  # bytes
    memory_limit: int | None  # bytes; None: no limit
    instruction_sets: tuple[str, ...]

    @property
    def cores(self) -> float:
        """The number of cores that this process can use."""
        return self.usable_cores if self.core_limit is None else min(self.usable_cores, self.core_limit)


def this_machine(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Return this machine.

    ``proc`` and ``cgroup`` are kernel folders; without them the values come from Python alone.
    """
    cpuinfo = _read(proc / "cpuinfo")
    flags = set(_field(cpuinfo, "flags|Features").split())
    return Machine(
        cpu=_field(cpuinfo, "model name|Model|CPU part") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        logical_cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        core_limit=_core_limit(cgroup),
        memory=_memory(_read(proc / "meminfo")),
        memory_limit=_number(_read(cgroup / "memory.max")),
        instruction_sets=tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags),
    )


def _core_limit(cgroup: Path) -> float | None:
    """Return the limit in ``cpu.max``, which reads "quota period" in microseconds, or "max period"."""
    quota, _, period = _read(cgroup / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory(meminfo: str) -> int:
    kilobytes = _number(_field(meminfo, "MemTotal").removesuffix("kB"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if kilobytes is None else kilobytes * 1024


def _field(text: str, names: str) -> str:
    match = re.search(rf"^(?:{names})\s*:\s*(.*)$", text, re.MULTILINE)
    return match.group(1).strip() if match else ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
