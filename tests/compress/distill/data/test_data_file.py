"""A data file appears complete or not at all, and never over another file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hasten.compress.distill.data.data_file import DataFile
from hasten.core.errors import CapacityError, HastenError, InvalidOption


def test_records_are_published_and_the_answers_removed(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "out.jsonl")
    with file.open({}) as answers:
        answers.add([("a", 1)])
        assert file.publish([{"input": "ü", "output": "x\ny"}, {"input": "b"}], answers) == 2
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"input": "ü", "output": "x\ny"}, {"input": "b"}] and "ü" in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_error_leaves_the_answers_alone(tmp_path: Path) -> None:
    def records() -> Iterator[dict[str, str]]:
        yield {"input": "a"}
        assert not (tmp_path / "out.jsonl").exists()
        raise HastenError("no")

    file = DataFile(tmp_path / "out.jsonl")
    with file.open({}) as answers:
        answers.add([("a", 1)])
        with pytest.raises(HastenError, match="no"):
            file.publish(records(), answers)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.partial"]
    with pytest.raises(InvalidOption, match="no example was made"), file.open({}) as answers:
        file.publish([], answers)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.partial"]


@pytest.mark.parametrize("name", [".", "missing/out.jsonl", "taken", "folder", "a\0b", "taken/out", "link"])
def test_paths_that_cannot_be_new_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidOption, match="--out"):
        DataFile(tmp_path / name).open({})
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "taken").read_text() == "mine"


def test_an_unfinished_run_with_other_settings_is_refused_at_once(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "out.jsonl")
    with file.open({"seed": 1}) as answers:
        answers.add([("a", 1)])
    file.check({"seed": 1})
    with pytest.raises(InvalidOption, match="seed was 1 and is 2"):
        file.check({"seed": 2})


def test_a_run_that_was_killed_after_it_was_published_ends_well(tmp_path: Path) -> None:
    file, records = DataFile(tmp_path / "out.jsonl"), [{"input": "a"}]
    with file.open({}) as answers:
        answers.add([("a", 1)])
        (tmp_path / "copy").write_bytes(answers.path.read_bytes())
        file.publish(records, answers)
    (tmp_path / "copy").rename(tmp_path / "out.jsonl.partial")
    with file.open({}) as answers:
        assert file.publish(records, answers) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_another_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    file = DataFile(tmp_path / "out.jsonl")
    with file.open({}) as answers:
        answers.add([("a", 1)])
        (tmp_path / "out.jsonl").write_text("mine")
        with pytest.raises(InvalidOption, match="the output file exists"):
            file.publish([{"input": "a"}], answers)
    assert (tmp_path / "out.jsonl").read_text() == "mine" and (tmp_path / "out.jsonl.partial").exists()
    (tmp_path / "other.jsonl.new").write_text("mine")
    with pytest.raises(InvalidOption, match=r"the output file exists: got .*other\.jsonl\.new"):
        DataFile(tmp_path / "other.jsonl").check({})


def test_a_full_disk_is_one_error_and_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def full(handle: int, data: bytes, position: int) -> int:
        if position > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:10], position)

    file = DataFile(tmp_path / "out.jsonl")
    with file.open({}) as answers:
        answers.add([("a", 1)])
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(CapacityError, match="No space left"):
            answers.add([("b", 2), ("c", "x" * 99)])
    monkeypatch.undo()
    with file.open({}) as answers:
        assert "a" in answers and "c" not in answers
        answers.add([("c", 3)])
        assert answers.get("c") == 3
