"""``new_file``: a file appears complete or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.small_disk import small_disk

from hasten.checkpoints.new_file import new_file
from hasten.core.errors import CapacityError, InvalidOption


def test_a_file_replaces_an_older_one_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")
    file.chmod(0o644)
    with new_file(file, 3) as stream:
        stream.write(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")

    def write() -> None:
        with new_file(file, 3) as stream:
            stream.write(b"n")
            raise error

    with pytest.raises(error):
        write()
    assert (os.listdir(tmp_path), file.read_bytes()) == (["x"], b"old")


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "x"
    refused = pytest.raises(CapacityError, match=r"x cannot be written: got File too large\. Free space")
    with small_disk(1000), refused, new_file(file, 5000) as stream:
        stream.write(bytes(5000))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(tmp_path: Path) -> None:
    refused = pytest.raises(CapacityError, match=r"it needs 1,152,921,504,606,846,976 bytes, and the disk has [\d,]+ free bytes")
    with refused, new_file(tmp_path / "x", 1 << 60):
        raise AssertionError("the file was opened")
    assert os.listdir(tmp_path) == []


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "link", tmp_path / "disk" / "x"
    link.symlink_to(target)
    for content in (b"1", b"2"):
        with new_file(link, 1) as stream:
            stream.write(content)
        assert link.is_symlink() and target.read_bytes() == content
    assert os.listdir(tmp_path / "disk") == ["x"]


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(InvalidOption, match="cannot be written"), new_file(tmp_path / name, 1):
            raise AssertionError("a file was opened")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]


@pytest.mark.parametrize("name", ["nowhere/x", ".", "a\0b", "x" * 300])
def test_a_path_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="cannot be written"), new_file(tmp_path / name, 1) as stream:
        stream.write(b"x")
    assert os.listdir(tmp_path) == []
