"""Reading text files and token id files, and the errors for files without text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.core.errors import InvalidOption
from hasten.quality.documents import CALIBRATION, HELD_OUT, read_texts, read_token_ids, split_lines


def write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def test_the_shipped_texts() -> None:
    texts = read_texts(HELD_OUT)
    assert len(texts) == 45
    assert sum(len(text.encode()) for text in texts) > 400_000


def test_the_calibration_text_has_no_passage_of_the_held_out_text() -> None:
    """So many characters in a row are a passage; imports and licence headers are shorter."""
    length = 200
    texts, held_out = read_texts(CALIBRATION), read_texts(HELD_OUT)
    passages = {text[start : start + length] for text in held_out for start in range(len(text) - length + 1)}
    assert not any(text[start : start + length] in passages for text in texts for start in range(len(text) - length + 1))
    records = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in (CALIBRATION, HELD_OUT)]
    names, held_out_names = ({record["name"] for record in file} for file in records)
    assert len(names) == len(texts) == 88 and not names & held_out_names
    sizes = {
        kind: sum(len(record["text"].encode()) for record in records[0] if record["kind"] == kind) for kind in ("code", "docs")
    }
    assert all(210_000 <= size <= 215_000 for size in sizes.values())


def test_parts_of_a_text_end_with_a_line() -> None:
    text = "".join(f"line {number}\n" for number in range(1000)) + "a last line without an end" * 10
    parts = list(split_lines(text, 100))
    assert "".join(parts) == text
    assert all(part.endswith("\n") and 100 < len(part) <= 110 for part in parts[:-2])
    assert list(split_lines("no line break" * 100, 50)) == ["no line break" * 100]
    assert list(split_lines("short\n", 50)) == ["short\n"]


def test_a_plain_file_is_one_text_and_a_jsonl_file_is_many(tmp_path: Path) -> None:
    several = ["naïve 你好", "two\nlines\u2028and a separator"]
    lines = "\n\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in several)
    assert read_texts(write(tmp_path, "a.jsonl", lines.encode())) == several
    assert read_texts(write(tmp_path, "a.txt", b"\xef\xbb\xbfone\n\ntwo")) == ["one\n\ntwo"]


def test_token_ids(tmp_path: Path) -> None:
    file = write(tmp_path, "ids", b"1 2,3\n\n  4,\t0\n")
    assert read_token_ids(file, 5) == [(1, 2, 3), (4, 0)]
    with pytest.raises(InvalidOption, match=r"line 3 .* got 4; allowed: whole numbers from 0 to 3"):
        read_token_ids(file, 4)
    with pytest.raises(InvalidOption, match=r"got -1, x, ²"):
        read_token_ids(write(tmp_path, "bad", "-1 x ² 3".encode()), 9)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty: got 0 bytes"),
        ("blank.txt", b" \n\t\n", "is empty: got 4 bytes"),
        ("photo.txt", b"\x89PNG\r\n", "is not text: got byte 0"),
        ("zero.txt", b"ab\0c", "is not text: got a zero byte at 2"),
        ("a.jsonl", b'{"text": "x"}\n{"words": "y"}', "line 2 of"),
        ("b.jsonl", b'{"text": 3}', "line 1 of"),
        ("c.jsonl", b"plain", "line 1 of"),
        ("d.jsonl", b'{"text": "\\ud800"}', "line 1 of"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        read_texts(write(tmp_path, name, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.txt"):
        with pytest.raises(InvalidOption, match="cannot be read"):
            read_texts(path)
