"""The tokens that follow a position of a sequence."""

from __future__ import annotations

from collections.abc import Sequence


def continuation(token_ids: Sequence[int], start: int, count: int) -> tuple[int, ...]:
    """Return ``count`` tokens from ``start`` on. Past the end the copy repeats itself."""
    period = len(token_ids) - start
    return tuple(token_ids[start + i % period] for i in range(count)) if period > 0 else ()
