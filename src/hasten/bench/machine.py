"""What this machine is: processor, instruction sets, memory, accelerator. It measures nothing."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

# The name in /proc/cpuinfo -> what people call it.
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
    cpu: str
    architecture: str
    system: str
    logical_cores: int
    usable_cores: int  # that this process may run on
    core_limit: float | None  # of its control group; None: no limit
    memory: int  # bytes
    memory_limit: int | None  # of its control group
    instruction_sets: tuple[str, ...]

    @property
    def cores(self) -> float:
        """What this process really gets."""
        return self.usable_cores if self.core_limit is None else min(self.usable_cores, self.core_limit)


def this_machine(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Machine:
    """``proc`` and ``cgroup`` are the kernel's folders; on a system without them the facts come from Python alone."""
    cpuinfo = _text(proc / "cpuinfo")
    flags = set(_field(cpuinfo, "flags|Features").split())
    return Machine(
        cpu=_field(cpuinfo, "model name|Model|CPU part") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        logical_cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        core_limit=_core_limit(cgroup),
        memory=_memory(_text(proc / "meminfo")),
        memory_limit=_number(_text(cgroup / "memory.max")),
        instruction_sets=tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags),
    )


def _core_limit(cgroup: Path) -> float | None:
    """``cpu.max`` is "quota period" in microseconds, or "max period"."""
    quota, _, period = _text(cgroup / "cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory(meminfo: str) -> int:
    kilobytes = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(kilobytes.group(1)) * 1024 if kilobytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _field(text: str, names: str) -> str:
    found = re.search(rf"^(?:{names})\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
