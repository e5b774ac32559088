"""A result gets its name when it is complete, and parts of one run never become parts of another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hasten.compress.work_folder import WorkFolder
from hasten.core.errors import CapacityError, InvalidOption


def opened(out: Path, settings: dict[str, int] | None = None, *, resume: bool = False) -> WorkFolder:
    return WorkFolder.open(out, settings or {"bits": 4}, resume=resume)


def part(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((4,), value)}


def published(work: WorkFolder) -> None:
    work.write("layer-0", part(1.0))
    (work.new_result() / "file").touch()
    work.publish()


def test_the_result_appears_at_the_end(tmp_path: Path) -> None:
    work = opened(tmp_path / "a" / "out")
    assert list(tmp_path.iterdir()) == []
    published(work)
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["out", "file"]


def test_the_files_are_on_the_disk_before_the_result_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append(f"{Path(old).name} is {Path(new).name}"), replace(old, new)))
    published(opened(tmp_path / "out"))
    start = events.index("result is out")
    assert {"file", "result"} <= set(events[:start]) and tmp_path.name in events[start:]


def test_an_empty_folder_is_replaced_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    published(opened(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "file").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


@pytest.mark.parametrize("name", ["file/out", "n" * 250, "n" * 300, "a\0b", ".", "taken"])
def test_a_path_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InvalidOption):
        opened(Path(name) if name == "." else tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here", "taken"]


def test_a_read_only_parent_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InvalidOption, match=f"{tmp_path} is no folder that hasten may write to"):
        opened(tmp_path / "a" / "out")


def test_a_run_killed_after_its_end_leaves_no_parts_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def delete_one_file(folder: Path, **options: object) -> None:
        next(folder.rglob("settings.json")).unlink()
        raise Killed

    work = opened(tmp_path / "out")
    work.write("layer-0", part(1.0))
    work.new_result()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", delete_one_file)
        with pytest.raises(Killed):
            work.publish()
    (tmp_path / "out").rename(tmp_path / "first")
    assert not opened(tmp_path / "out", {"bits": 8}, resume=True).has("layer-0")


def test_a_file_of_the_user_beside_the_parts_stays(tmp_path: Path) -> None:
    work = opened(tmp_path / "out")
    work.write("layer-0", part(1.0))
    (tmp_path / "out.partial" / "mine").touch()
    work.new_result()
    work.publish()
    assert (tmp_path / "out.partial" / "mine").exists()


def test_a_run_to_resume_needs_space_for_the_rest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    work = opened(tmp_path / "out")
    with pytest.raises(CapacityError, match="too small"):
        work.check_space(1050)
    work.write("layer-0", {"a": torch.zeros(100)})
    work.check_space(1050)


def test_models_in_folders_of_the_run_count_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounds of a pruning are checkpoints of their own, and the result of a killed run is removed."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    work = opened(tmp_path / "out")
    work.write("layer-0", {})
    for folder in (work.resume.folder / "round-001", work.new_result()):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(bytes(400))
    work.check_space(1750)
    with pytest.raises(CapacityError, match="too small"):
        work.check_space(1950)
