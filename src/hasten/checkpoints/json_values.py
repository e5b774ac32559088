"""Reading JSON files, and checking the types and ranges of their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from hasten.core.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object. Raises ``CheckpointError``."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON", got=error, remedy="Download the checkpoint again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} is not a JSON object", got=type(values).__name__, remedy="Download the checkpoint again")
    return values


def is_integer(value: object, low: int = 1) -> TypeGuard[int]:
    return type(value) is int and value >= low


def are_integers(value: object, low: int = 1) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(is_integer(item, low) for item in value)


def are_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def are_shares(value: object) -> TypeGuard[list[float]]:
    """Whether ``value`` is a list of numbers from 0 to 1."""
    return isinstance(value, list) and all(type(item) in (int, float) and 0 <= item <= 1 for item in value)
