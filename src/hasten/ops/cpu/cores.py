"""How many cores this process may use: by affinity, by the limit of its control group, and without counting hyperthreads twice."""

from __future__ import annotations

import math
import os
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """OMP_NUM_THREADS where it is set, as in other numeric programs; else the available cores."""
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(named) if named.isdigit() and int(named) > 0 else available_cores()


def available_cores(topology: Path = TOPOLOGY, cgroup: Path = CGROUP) -> int:
    """At least 1. Two hyperthreads of a core count once: they share the units that the kernels saturate."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu, topology) for cpu in cpus}
    return max(1, min(len(cores), _quota(cgroup)))


def _siblings(cpu: int, topology: Path) -> str:
    """Names the core that a logical CPU belongs to."""
    file = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return file.read_text().strip() if file.exists() else str(cpu)


def _quota(cgroup: Path) -> int:
    """Whole CPUs that the control group gives (version 2: cpu.max, version 1: cpu.cfs_*); very many if it does not say."""
    unlimited = 1 << 20
    new = cgroup / "cpu.max"
    if new.exists():
        quota, period = new.read_text().split()
        return unlimited if quota == "max" else max(1, math.floor(int(quota) / int(period)))
    old_quota, old_period = cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"
    if old_quota.exists() and old_period.exists() and (quota_us := int(old_quota.read_text())) > 0:
        return max(1, math.floor(quota_us / int(old_period.read_text())))
    return unlimited
