"""``Journal``: records that a killed process leaves behind, one JSON object per line.

The first line names the format. A record is written at once. A process that is killed while it writes leaves a line without an end,
which is cut off when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from hasten.core.errors import HastenError, InvalidOption, show

MAX_BYTES = 1 << 30
Entry = TypeVar("Entry")


class Journal(Generic[Entry]):
    """A file of records, for one process at a time.

    ``contents`` names them in errors. ``parse`` returns what a line's JSON means; it raises ``ValueError``, ``TypeError`` or
    ``KeyError``. Raises ``InvalidOption`` for a file that is not one, or that another process uses.
    """

    def __init__(self, path: Path, header: bytes, contents: str, parse: Callable[[Any], Entry]) -> None:
        self._path, self._header, self._contents, self._parse = path, header, contents, parse
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or error
            raise InvalidOption(f"the file of {contents} {path} cannot be opened", got=got, remedy="Choose another file") from None
        try:
            self.entries = self._read()
        except BaseException:
            self.close()
            raise

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep a record. Raises ``HastenError`` if the disk is full."""
        data = memoryview((json.dumps(record) + "\n").encode())
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise HastenError(f"{self._path} cannot be written", got=error.strerror, remedy="Free space there") from None

    def close(self) -> None:
        """Close the file. Idempotent."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _read(self) -> list[Entry]:
        file = f"the file of {self._contents}"
        state = os.fstat(self._handle)
        if not stat.S_ISREG(state.st_mode):
            raise InvalidOption(f"{file} is no ordinary file", got=self._path, remedy="Choose another file")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "Wait for it, or choose another file"
            raise InvalidOption(f"another process uses {file}", got=self._path, remedy=remedy) from None
        size = os.fstat(self._handle).st_size
        if size > MAX_BYTES:
            raise InvalidOption(f"{file} is too large", got=f"{size:,} bytes", remedy=self._remedy)
        with open(self._handle, "rb", closefd=False) as stream:
            content = stream.read(size)
        if not content or self._header.startswith(content):  # new, or killed while it was made
            os.ftruncate(self._handle, 0)
            os.write(self._handle, self._header)
            return []
        if not content.startswith(self._header):
            raise InvalidOption(f"this is no file of {self._contents}", got=self._path, remedy="Choose another file")
        end = content.rfind(b"\n") + 1
        lines = content[len(self._header) : end].split(b"\n")[:-1]
        entries = [self._parse_line(number, line) for number, line in enumerate(lines, 2)]
        os.ftruncate(self._handle, end)
        return entries

    def _parse_line(self, number: int, line: bytes) -> Entry:
        try:
            return self._parse(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            got = show(line.decode(errors="replace"))
            raise InvalidOption(f"line {number} of {self._path} is damaged", got=got, remedy=self._remedy) from None

    @property
    def _remedy(self) -> str:
        return f"Choose another file, or remove it: its {self._contents} are then computed again"
