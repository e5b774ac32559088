"""Records of JSONL files: one JSON object per line, and the first wrong line named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hasten.core.errors import InvalidOption, show
from hasten.core.unicode_text import is_unicode
from hasten.quality.documents import read_text_file

Parsed = TypeVar("Parsed")


def read_records(file: Path, parse: Callable[[Mapping[str, Any]], Parsed], allowed: str) -> list[Parsed]:
    """Return what ``parse`` makes of each line; blank lines are skipped.

    ``parse`` raises ``ValueError``, ``TypeError`` or ``KeyError`` for a wrong record, and ``allowed`` says what is right. Raises
    ``InvalidOption`` that names the first wrong line.
    """
    found = []
    for number, line in enumerate(read_text_file(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
            json.dumps(record, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair cannot be written
            found.append(parse(record))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InvalidOption(f"line {number} of {file} is wrong", got=show(line), allowed=f"one {allowed} per line") from None
    return found


def text_of(record: Mapping[str, Any], name: str) -> str:
    """Return a text of a record. Raises ``KeyError`` or ``ValueError`` if it is missing or blank."""
    text = record[name]
    if not is_unicode(text) or not text.strip():
        raise ValueError(name)
    return str(text)
