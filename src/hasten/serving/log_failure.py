"""``log_failure``: an exception in the log, without its message, which may have a prompt."""

from __future__ import annotations

import logging
import traceback


def log_failure(log: logging.Logger, error: BaseException) -> None:
    """Log the type of an exception, of its causes, and where each was raised."""
    lines: list[str] = []
    found: BaseException | None = error
    while found is not None and len(lines) < 100:
        lines += [f"{type(found).__module__}.{type(found).__qualname__}, raised at"]
        lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(found.__traceback__)[-20:]]
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    log.error("a request failed: %s", "\n".join(lines))
