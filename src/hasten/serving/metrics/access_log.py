"""``AccessLog``: one JSON line per request, on standard output.

A line has no prompt, no answer, no token id and no key. Every text in it is printable ASCII, so no client can forge a line or
move a terminal's cursor.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

MAX_CLIENT_ID = 128  # characters of a client's own request id


class AccessLog:
    def __init__(self, write: Callable[[str], None] | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """``write`` takes a whole line; None: standard output. ``clock``: Unix time."""
        self._write, self._clock = write or write_line, clock

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry without its absent values. A log that cannot be written harms no request."""
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"time": moment, **{name: value for name, value in entry.items() if value is not None}}
        line = json.dumps(fields, separators=(",", ":")).replace("\x7f", "\\u007f")
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._write(line + "\n")


def write_line(line: str) -> None:
    """Write a line to standard output, whatever that is now."""
    sys.stdout.write(line)
    sys.stdout.flush()
