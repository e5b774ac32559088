"""The default number of threads, from folders laid out as the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hasten.ops.cpu.cores import available_cores, default_threads


def write_topology(folder: Path, siblings: list[str]) -> Path:
    for cpu, names in enumerate(siblings):
        file = folder / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(names + "\n")
    return folder


def test_hyperthreads_count_once_within_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = write_topology(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    for affinity, cores in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({0, 1}, 2), ({3}, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, affinity=affinity: affinity)
        assert available_cores(topology, tmp_path) == cores


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_cgroup_v2_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert available_cores(tmp_path / "missing", tmp_path) == cores


def test_cgroup_v1_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    for quota, cores in (("-1", 4), ("300000", 3)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert available_cores(tmp_path / "missing", tmp_path) == cores


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("4,2", 4), ("0", None), ("many", None), ("", None)])
def test_omp_num_threads_is_the_default_if_it_is_a_positive_number(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (threads or available_cores())
