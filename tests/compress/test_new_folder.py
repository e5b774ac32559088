"""A folder appears complete or not at all, and nothing of the user's is removed for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hasten.compress.new_folder import new_folder
from hasten.core.errors import CapacityError, InvalidOption


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with new_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not out.exists()
    assert [path.relative_to(out).as_posix() for path in sorted(out.rglob("*"))] == ["sub", "sub/file"]
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_is_replaced_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with new_folder(tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "file").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(CapacityError, match=f"{tmp_path}/out cannot be written: got {os.strerror(number)}"),
        new_folder(tmp_path / "out"),
    ):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
def test_an_exception_removes_the_folder(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").touch()
            raise error

    with pytest.raises(InvalidOption if isinstance(error, OSError) else type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").touch()

    with pytest.raises(InvalidOption, match="cannot be written"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_folder_of_the_user_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").touch()
    with (
        pytest.raises(InvalidOption, match=r"first written to a path that exists: got .*out\.partial"),
        new_folder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out.partial" / "mine").exists()
    (tmp_path / "out.partial" / "mine").unlink()
    with new_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
