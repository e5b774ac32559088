"""The limits of control groups, from folders laid out as the system's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.ops.cpu.control_groups import ControlGroups

GIB = 1 << 30
NO_LIMIT_V1 = (1 << 63) - 4096


def system(folder: Path, membership: str, files: dict[str, str | int]) -> ControlGroups:
    """Write /proc/self/cgroup and the files of the mounts, and return the view of them."""
    (folder / "proc").write_text(membership)
    for name, text in files.items():
        file = folder / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return ControlGroups(folder / "mount", folder / "proc")


def test_no_control_group_is_no_limit(tmp_path: Path) -> None:
    groups = ControlGroups(tmp_path / "missing", tmp_path / "missing")
    assert (groups.cpus(), groups.free_bytes()) == (None, None)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({"a/b": "max 100000", "a": "max 100000"}, None),
        ({"a/b": "max 100000", "a": "150000 100000"}, 1.5),
        ({"a/b": "50000 100000", "a": "400000 100000"}, 0.5),
        ({"a/b": "300000 100000", "a": "max 100000", ".": "200000 100000"}, 2.0),
        ({"a/b": "garbage", "a": "200000 0", ".": ""}, None),
        ({"other": "100000 100000"}, None),
    ],
)
def test_the_strictest_quota_of_nested_groups_counts(tmp_path: Path, quotas: dict[str, str], expected: float | None) -> None:
    assert system(tmp_path, "0::/a/b\n", {f"{group}/cpu.max": text for group, text in quotas.items()}).cpus() == expected


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1_has_a_mount_for_each_controller(tmp_path: Path, mount: str) -> None:
    files = {
        f"{mount}/cpu.cfs_quota_us": -1,
        f"{mount}/cpu.cfs_period_us": 100_000,
        f"{mount}/docker/cpu.cfs_quota_us": 300_000,
        f"{mount}/docker/cpu.cfs_period_us": 100_000,
        f"{mount}/docker/inner/cpu.cfs_quota_us": -1,
        f"{mount}/docker/inner/cpu.cfs_period_us": 100_000,
        f"{mount}/sibling/cpu.cfs_quota_us": 100_000,
        f"{mount}/sibling/cpu.cfs_period_us": 100_000,
    }
    assert system(tmp_path, "4:cpu,cpuacct:/docker/inner\n3:memory:/sibling\n0::/\n", files).cpus() == 3.0


def test_reclaimable_page_cache_is_free_memory(tmp_path: Path) -> None:
    """A process that has read large files has used no memory that another may not take."""
    files = {
        "memory.max": 8 * GIB,
        "memory.current": 7 * GIB,
        "memory.stat": f"anon {2 * GIB}\nfile {5 * GIB}\ninactive_file {4 * GIB}\nactive_file {GIB}",
    }
    assert system(tmp_path, "0::/\n", files).free_bytes() == 5 * GIB


def test_the_strictest_memory_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "pod/memory.max": 4 * GIB,
        "pod/memory.current": 3 * GIB,
        "pod/memory.stat": "inactive_file 0",
        "pod/c/memory.max": "max",
        "pod/c/memory.current": GIB,
        "pod/c/memory.stat": "inactive_file 0",
    }
    assert system(tmp_path, "0::/pod/c\n", files).free_bytes() == GIB


def test_version_1_limits_memory(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": NO_LIMIT_V1,
        "memory/memory.usage_in_bytes": 20 * GIB,
        "memory/docker/memory.limit_in_bytes": 2 * GIB,
        "memory/docker/memory.usage_in_bytes": GIB,
        # In version 1, the numbers without "total_" are of this group alone and not of those within it.
        "memory/docker/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}",
    }
    assert system(tmp_path, "9:memory:/docker\n", files).free_bytes() == 3 * GIB // 2
    assert system(tmp_path, "9:memory:/elsewhere\n", files).free_bytes() is None


def test_both_versions_may_be_mounted(tmp_path: Path) -> None:
    files = {
        "unified/a/memory.max": 3 * GIB,
        "unified/a/memory.current": GIB,
        "memory/b/memory.limit_in_bytes": 2 * GIB,
        "memory/b/memory.usage_in_bytes": GIB,
    }
    groups = system(tmp_path, "2:memory:/b\n1:name=systemd:/x\n0::/a\n", files)
    assert groups.free_bytes() == GIB
    (tmp_path / "mount/memory/b/memory.limit_in_bytes").write_text("garbage")
    assert groups.free_bytes() == 2 * GIB


@pytest.mark.parametrize("path", ["/../../host/group", "/kubepods/pod7/outside-of-the-mount", ""])
def test_a_path_outside_of_the_mount_means_its_root(tmp_path: Path, path: str) -> None:
    """A container sees its own group as the root, and sometimes the path that the host has for it."""
    groups = system(tmp_path, f"0::{path}\n", {"memory.max": GIB, "memory.current": 0, "cpu.max": "200000 100000"})
    assert (groups.cpus(), groups.free_bytes()) == (2.0, GIB)
    assert groups.root.name == "mount"


def test_a_full_group_has_no_free_memory(tmp_path: Path) -> None:
    assert system(tmp_path, "0::/\n", {"memory.max": GIB, "memory.current": GIB + 4096}).free_bytes() == 0
