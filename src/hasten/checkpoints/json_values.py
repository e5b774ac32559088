"""Reading JSON files, and checking the types and ranges of their values.

A file is UTF-8 without a byte order mark, at most ``MAX_JSON_BYTES`` long and ``MAX_JSON_DEPTH`` deep, and gives a key one value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from hasten.core.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000
MAX_JSON_DEPTH = 64
MAX_INTEGER = 2**63 - 1


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object. Raises ``CheckpointError``."""
    try:
        if not os.path.isfile(file):  # opening a pipe would wait for a writer
            raise OSError("it is not a readable file")
        if file.stat().st_size > MAX_JSON_BYTES:
            raise OSError(f"it is longer than {MAX_JSON_BYTES:,} bytes")
        values = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON", got=error, remedy="Download the checkpoint again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object", got=type(values).__name__, remedy="Download the checkpoint again")
    return values


def parse_json(content: bytes) -> object:
    """Return the value of a JSON text. Raises ``ValueError`` that says what is wrong with it."""
    try:
        value: object = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep") from None
    level: list[Iterable[object]] = [[value]]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [_children(child) for parent in level for child in parent if isinstance(child, dict | list)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        for key, value in pairs:
            if values[key] != value:
                raise ValueError(f"the key {key!r} has two values")
    return values


def _children(parent: dict[str, Any] | list[Any]) -> Iterable[object]:
    return parent.values() if isinstance(parent, dict) else parent


def is_integer(value: object, low: int = 1, high: int = MAX_INTEGER) -> TypeGuard[int]:
    return type(value) is int and low <= value <= high


def are_integers(value: object, low: int = 1, high: int = MAX_INTEGER) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(is_integer(item, low, high) for item in value)


def are_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def are_shares(value: object) -> TypeGuard[list[float]]:
    """Whether ``value`` is a list of numbers from 0 to 1."""
    return isinstance(value, list) and all(type(item) in (int, float) and 0 <= item <= 1 for item in value)
