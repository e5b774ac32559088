"""``is_unicode``: whether a value is text that can be written."""

from __future__ import annotations

from typing import TypeGuard


def is_unicode(value: object) -> TypeGuard[str]:
    """Return whether the value is Unicode text: JSON may hold half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
