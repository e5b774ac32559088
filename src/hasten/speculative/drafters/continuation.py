"""What follows a place in a text."""

from __future__ import annotations

from collections.abc import Sequence


def continuation(token_ids: Sequence[int], begin: int, count: int) -> tuple[int, ...]:
    """``count`` tokens from ``begin`` on; past the end of the text it copies itself, as text that turns in circles does."""
    period = len(token_ids) - begin
    return tuple(token_ids[begin + i % period] for i in range(count)) if period > 0 else ()
