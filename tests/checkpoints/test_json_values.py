"""A JSON file that is broken, ambiguous, too deep or no file at all is refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.checkpoints import json_values
from hasten.checkpoints.json_values import MAX_JSON_DEPTH, read_json
from hasten.core.errors import CheckpointError


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def fault(file: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_json(file)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_objects_are_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for content in (b"{}", '{"a": ["é", 1.5, null]}'.encode(), b'{"a": 1, "a": 1}', nested(MAX_JSON_DEPTH)):
        file.write_bytes(content)
        assert read_json(file) == json.loads(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read as JSON"),
        (b"null", "not a JSON object"),
        (nested(MAX_JSON_DEPTH + 1), f"nested more than {MAX_JSON_DEPTH} deep"),
        (nested(900), f"nested more than {MAX_JSON_DEPTH} deep"),
        (b"[" * 100_000, f"nested more than {MAX_JSON_DEPTH} deep"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("{}".encode("utf-16"), "utf-8"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' has two values"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_broken_content_is_refused(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert expected in fault(tmp_path / "config.json")


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "MAX_JSON_BYTES", 100)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * 200 + '"}')
    assert "longer than 100 bytes" in fault(tmp_path / "config.json")


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda file: file.symlink_to("nowhere"),
        lambda file: file.symlink_to(file.name),
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: None,
    ],
    ids=["folder", "pipe", "dangling link", "loop", "device", "missing"],
)
def test_what_is_no_file_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    """Reading a pipe would wait for ever, and reading a device would not end."""
    make(tmp_path / "config.json")
    assert "cannot be read as JSON" in fault(tmp_path / "config.json")
    for name in ("x" * 300, "a\0b"):
        assert "cannot be read as JSON" in fault(tmp_path / name)


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in fault(tmp_path / "config.json")
