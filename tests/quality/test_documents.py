"""Reading text files and token id files, and the errors for files without text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.core.errors import InvalidOption
from hasten.quality.documents import HELD_OUT, read_texts, read_token_ids


def write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def test_the_shipped_texts() -> None:
    texts = read_texts(HELD_OUT)
    assert len(texts) == 45
    assert sum(len(text.encode()) for text in texts) > 400_000


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
