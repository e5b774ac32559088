"""The number of cores this process may use, by affinity and control group, hyperthreads counted once."""

from __future__ import annotations

import math
import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Return OMP_NUM_THREADS if it is set to a positive number, else the available cores."""
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(value) if value.isdigit() and int(value) > 0 else available_cores()


def available_cores(topology: Path = TOPOLOGY, cgroup: Path = CGROUP) -> int:
    """Return the number of available cores, at least 1.

    The hyperthreads of a core count once, since they share the units that the kernels saturate.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_core_name(cpu, topology) for cpu in cpus}
    return max(1, min(len(cores), _cpu_quota(cgroup)))


def _core_name(cpu: int, topology: Path) -> str:
    """Return a name that is shared by the logical CPUs of one core."""
    file = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return file.read_text().strip() if file.exists() else str(cpu)


def _cpu_quota(cgroup: Path) -> int:
    """Return the CPUs of the control group, rounded down; 2**20 if unlimited.

    Version 2 has cpu.max, version 1 has cpu.cfs_*.
    """
    unlimited = 1 << 20
    version_2 = cgroup / "cpu.max"
    if version_2.exists():
        quota, period = version_2.read_text().split()
        return unlimited if quota == "max" else max(1, math.floor(int(quota) / int(period)))
    quota_file, period_file = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"
    if quota_file.exists() and period_file.exists() and (quota_us := int(quota_file.read_text())) > 0:
        return max(1, math.floor(quota_us / int(period_file.read_text())))
    return unlimited
