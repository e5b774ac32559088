"""The number of cores this process may use, by affinity and control group, hyperthreads counted once."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from hasten.ops.cpu.control_groups import ControlGroups

TOPOLOGY = Path("/sys/devices/system/cpu")
THREADS_VARIABLE = "OMP_NUM_THREADS"


class ThreadsWarning(UserWarning):
    """More threads were requested than there are cores; the message names both numbers."""


def default_threads() -> int:
    """Return OMP_NUM_THREADS if it is a positive number, else the available cores. See ``choose_threads``."""
    return choose_threads(None)


def choose_threads(threads: int | None) -> int:
    """Return the threads to compute with: ``threads`` or the default, at most one per available core.

    The threads of a step wait for each other, so a step takes many times longer where two of them share a core. Warns with
    ``ThreadsWarning`` if fewer are used than requested.
    """
    requested, cores = _environment_threads() if threads is None else threads, available_cores()
    if requested is None:
        return cores
    cores = available_cores(rounded=math.ceil)  # of 1.5 processors, the default is one thread, and two are no mistake
    if requested <= cores:
        return requested
    source = THREADS_VARIABLE if threads is None else "threads"
    warnings.warn(
        f"{source}={requested} is more than the {cores} core{'s' if cores > 1 else ''} that this process may use: "
        f"hasten computes with {cores}",
        ThreadsWarning,
        stacklevel=3,
    )
    return cores


def available_cores(
    topology: Path = TOPOLOGY, groups: ControlGroups | None = None, rounded: Callable[[float], int] = math.floor
) -> int:
    """Return the number of available cores, at least 1. ``rounded``: of a part of a core.

    The hyperthreads of a core count once, since they share the units that the kernels saturate.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_core_name(cpu, topology) for cpu in cpus})
    quota = (groups or ControlGroups()).cpus()
    return max(1, cores if quota is None else min(cores, rounded(quota)))


def _environment_threads() -> int | None:
    value = os.environ.get(THREADS_VARIABLE, "").split(",")[0].strip()
    return int(value) or None if value.isdecimal() and len(value) < 10 else None


def _core_name(cpu: int, topology: Path) -> str:
    """Return a name that is shared by the logical CPUs of one core."""
    file = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return str(cpu)
