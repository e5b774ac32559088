"""The default number of threads, from folders laid out as the system's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hasten import LLM
from hasten.ops.cpu import cores as cores_module
from hasten.ops.cpu.control_groups import ControlGroups
from hasten.ops.cpu.cores import ThreadsWarning, available_cores, choose_threads, default_threads


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
        assert available_cores(topology, ControlGroups(tmp_path / "missing")) == cores


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_the_quota_of_the_control_group_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert available_cores(tmp_path / "missing", ControlGroups(tmp_path, tmp_path / "missing")) == cores


@pytest.mark.parametrize(
    ("value", "threads"), [("3", 3), ("4,2", 4), ("0", None), ("many", None), ("", None), ("²", None), ("9" * 5000, None)]
)
def test_omp_num_threads_is_the_default_if_it_is_a_positive_number(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None
) -> None:
    monkeypatch.setattr(cores_module, "available_cores", lambda **_: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (threads or 6)


def test_more_threads_than_cores_are_clamped_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores_module, "available_cores", lambda **_: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    with pytest.warns(ThreadsWarning, match=r"OMP_NUM_THREADS=64 is more than the 2 cores"):
        assert default_threads() == 2
    with pytest.warns(ThreadsWarning, match=r"threads=33 is more than the 2 cores"):
        assert choose_threads(33) == 2
    assert [choose_threads(threads) for threads in (1, 2)] == [1, 2]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("option", [None, 50])
def test_every_backend_computes_with_at_most_one_thread_per_core(
    monkeypatch: pytest.MonkeyPatch, backend: str, option: int | None
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(cores_module, "available_cores", lambda **_: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "50")
    torch.set_num_threads(50)  # as PyTorch does when it starts under this variable
    try:
        with pytest.warns(ThreadsWarning, match="=50 is more than the 2 cores"):
            llm = LLM("demo", backend=backend, threads=option, max_model_len=64, kv_cache_memory="8MiB", speculative_method="off")
        assert llm.describe()["threads"] == 2
    finally:
        torch.set_num_threads(before)
