"""The memory that is free, from files laid out as the system's."""

from __future__ import annotations

from pathlib import Path

from hasten.ops.cpu.control_groups import ControlGroups
from hasten.ops.cpu.memory import available_bytes, format_bytes

GIB = 1 << 30


def test_the_machine_and_the_control_group_both_limit_the_memory(tmp_path: Path) -> None:
    meminfo, groups = tmp_path / "meminfo", ControlGroups(tmp_path, tmp_path / "missing")
    meminfo.write_text(f"MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable:   {4 * GIB // 1024} kB\n")
    assert available_bytes(meminfo, groups) == 4 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"inactive_file {GIB // 2}\n")
    assert available_bytes(meminfo, groups) == 3 * GIB // 2
    (tmp_path / "memory.max").write_text(f"{64 * GIB}\n")
    assert available_bytes(meminfo, groups) == 4 * GIB


def test_without_these_files_the_system_is_asked(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "missing", ControlGroups(tmp_path / "missing", tmp_path / "missing")) > 0


def test_sizes_have_their_unit() -> None:
    sizes = {5: "5 bytes", 2048: "2.0 KiB", 3 << 19: "1.5 MiB", GIB: "1.0 GiB", 5 << 40: "5.0 TiB"}
    assert {size: format_bytes(size) for size in sizes} == sizes
