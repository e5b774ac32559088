"""``ControlGroups``: the CPU and memory limits of this process, in version 1 and version 2.

Limits nest: a process may use what the strictest of its group and the groups around it allows. Systems mount version 2 alone,
version 1 alone (one folder per controller), or both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED_BYTES = 1 << 60  # version 1 writes the largest multiple of a page below 2**63 for "no limit"


@dataclass(frozen=True, slots=True)
class ControlGroups:
    root: Path = Path("/sys/fs/cgroup")
    membership: Path = Path("/proc/self/cgroup")  # lines "hierarchy:controllers:path"; version 2 has no controllers

    def cpus(self) -> float | None:
        """Return the CPUs that the strictest quota allows, or None without a quota."""
        quotas = [_cpus_v2(folder) for folder in self._folders("")] + [_cpus_v1(folder) for folder in self._folders("cpu")]
        return min((quota for quota in quotas if quota is not None), default=None)

    def free_bytes(self) -> int | None:
        """Return the memory that the strictest limit leaves, or None without a limit.

        Page cache that the system can take back counts as free.
        """
        free = [
            _free_bytes(folder, "memory.max", "memory.current", "inactive_file") for folder in self._folders("")
        ] + [
            _free_bytes(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            for folder in self._folders("memory")
        ]  # fmt: skip
        return min((size for size in free if size is not None), default=None)

    def _folders(self, controller: str) -> Iterator[Path]:
        """Yield the group of this process and the groups around it. ``controller`` "" is version 2.

        In a container, the path may be the one outside of it. Its folders are then missing, and the container's own group is the
        root of the mount.
        """
        group = PurePosixPath(self._paths().get(controller, "/"))
        inner = [part for part in group.parts if part != "/"]
        if ".." in inner:  # outside of the namespace of this process
            inner = []
        for mount in self._mounts(controller):
            for depth in range(len(inner), -1, -1):
                yield mount.joinpath(*inner[:depth])

    def _mounts(self, controller: str) -> Iterator[Path]:
        if controller == "":
            yield self.root
            yield self.root / "unified"
            return
        try:
            names = [entry.name for entry in self.root.iterdir()]
        except OSError:
            return
        for name in names:  # one mount may serve several controllers: "cpu,cpuacct"
            if controller in name.split(","):
                yield self.root / name

    def _paths(self) -> dict[str, str]:
        """Return the path of this process's group, by controller."""
        paths: dict[str, str] = {}
        for line in (_read(self.membership) or "").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            for controller in controllers.split(","):
                paths[controller] = path
        return paths


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _read_integer(file: Path) -> int | None:
    text = _read(file)
    return int(text) if text is not None and text.isdecimal() and len(text) < 30 else None


def _cpus_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _cpus_v1(folder: Path) -> float | None:
    quota, period = _read_integer(folder / "cpu.cfs_quota_us"), _read_integer(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None  # a quota of -1 is no quota


def _free_bytes(folder: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> int | None:
    limit, usage = _read_integer(folder / limit_name), _read_integer(folder / usage_name)
    if limit is None or usage is None or limit >= _UNLIMITED_BYTES:
        return None
    statistics = dict(line.split(" ", 1) for line in (_read(folder / "memory.stat") or "").splitlines() if " " in line)
    reclaimable = statistics.get(reclaimable_name, "0")
    return max(0, limit - usage + min(usage, int(reclaimable) if reclaimable.isdecimal() else 0))
