"""Answers survive a kill at any byte, and a file that is something else is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.compress.distill.data.answer_file import AnswerFile
from hasten.core.errors import InvalidOption

SETTINGS = {"command": "generate", "seed": 3}
ANSWERS = [("a", [1, "ü"]), ("b", []), ("c", {"text": "line\nbreak"})]


def test_answers_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "out.partial"
    with AnswerFile(path, SETTINGS) as file:
        file.add(ANSWERS[:2])
        assert "a" in file and "c" not in file
        file.add(ANSWERS[2:])
        assert [file.get(key) for key, _ in ANSWERS] == [answer for _, answer in ANSWERS]
    with AnswerFile(path, SETTINGS) as file:
        assert len(file) == 3 and [file.get(key) for key, _ in ANSWERS] == [answer for _, answer in ANSWERS]


def test_a_file_that_ends_anywhere_keeps_its_complete_answers(tmp_path: Path) -> None:
    path = tmp_path / "out.partial"
    with AnswerFile(path, SETTINGS) as file:
        file.add(ANSWERS)
    content = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        num_complete = max(0, sum(end <= length for end in ends) - 1)
        with AnswerFile(path, SETTINGS) as file:
            assert len(file) == num_complete, length
            file.add(ANSWERS[num_complete:])
            assert [file.get(key) for key, _ in ANSWERS] == [answer for _, answer in ANSWERS]
        assert path.read_bytes() == content, length


def test_a_long_line_without_an_end_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.partial"
    with AnswerFile(path, SETTINGS) as file:
        file.add(ANSWERS[:1])
    content = path.read_bytes()
    path.write_bytes(content + b'{"key": "z", "answer": "' + b"x" * 999)
    with AnswerFile(path, SETTINGS) as file:
        file.add([("b", 1)])
    assert path.read_bytes() == content + b'{"key": "b", "answer": 1}\n'


def test_an_unused_file_disappears(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "out.partial", SETTINGS):
        assert (tmp_path / "out.partial").exists()
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "out.partial", SETTINGS) as file:
        file.add(ANSWERS)
    for settings, difference in (
        ({**SETTINGS, "seed": 4}, "got seed was 3 and is 4."),
        ({"command": "generate"}, "got seed was 3 and is None."),
        ({**SETTINGS, "n": 2}, "got n was None and is 2."),
    ):
        with pytest.raises(InvalidOption, match="unfinished run with other settings") as caught:
            AnswerFile(tmp_path / "out.partial", settings)
        assert difference in str(caught.value)


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "out.partial", SETTINGS), pytest.raises(InvalidOption, match="another process"):
        AnswerFile(tmp_path / "out.partial", SETTINGS)


@pytest.mark.parametrize(
    "content",
    [b"text\n", b"\0" * 100, b"[]\n", b'{"hasten_data": 2, "settings": {}}\n', b'{"hasten_data": 1, "settings": []}\n', b"x" * 99],
)
def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.partial").write_bytes(content)
    with pytest.raises(InvalidOption, match="holds something else"):
        AnswerFile(tmp_path / "out.partial", SETTINGS)
    assert (tmp_path / "out.partial").read_bytes() == content


@pytest.mark.parametrize("line", [b"x", b"[]", b'{"key": 1, "answer": 2}', b'{"key": "a"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "out.partial"
    with AnswerFile(path, SETTINGS) as file:
        file.add(ANSWERS[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InvalidOption, match=r"line 3 of .* is damaged"):
        AnswerFile(path, SETTINGS)


def test_the_first_line_is_the_settings(tmp_path: Path) -> None:
    with AnswerFile(tmp_path / "out.partial", SETTINGS) as file:
        file.add(ANSWERS)
    assert json.loads((tmp_path / "out.partial").read_text().splitlines()[0]) == {"hasten_data": 1, "settings": SETTINGS}


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="Give another path"):
        AnswerFile(tmp_path, SETTINGS)
