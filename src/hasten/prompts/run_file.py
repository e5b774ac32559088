"""``RunFile``: the results of a run, item by item, so that a killed run goes on where it was.

The first line names the format; every other line is one result with the key of what it depends on::

    {"hasten_prompt_run": 1}
    {"key": "9f2c...", "score": 1.0, "prompt_tokens": 12, "output_tokens": 4, "metric_tokens": 0, "output": "Paris"}

A line is written at once. A process that is killed while it writes leaves a line without an end, which is cut off when the file is
opened again.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

from hasten.core.errors import HastenError, InvalidOption, show
from hasten.prompts.evaluation import ItemResult

_HEADER = b'{"hasten_prompt_run": 1}\n'
MAX_BYTES = 1 << 30
_REMEDY = "Choose another file, or remove it: its results are then computed again"


class RunFile:
    """Results by key. Raises ``InvalidOption`` for a file that is not one, or that another process uses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
        except (OSError, ValueError) as error:
            got = getattr(error, "strerror", None) or error
            raise InvalidOption(f"the file of results {path} cannot be opened", got=got, remedy="Choose another file") from None
        try:
            self._results = self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: str) -> ItemResult | None:
        return self._results.get(key)

    def add(self, key: str, result: ItemResult) -> None:
        """Keep a result. Raises ``HastenError`` if the disk is full."""
        data = memoryview((json.dumps({"key": key, **result.as_dict()}) + "\n").encode())
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise HastenError(f"{self._path} cannot be written", got=error.strerror, remedy="Free space there") from None
        self._results[key] = result

    def close(self) -> None:
        """Close the file. Idempotent."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _read(self) -> dict[str, ItemResult]:
        state = os.fstat(self._handle)
        if not stat.S_ISREG(state.st_mode):
            raise InvalidOption("the file of results is no ordinary file", got=self._path, remedy="Choose another file")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "Wait for it, or choose another file"
            raise InvalidOption("another process uses the file of results", got=self._path, remedy=remedy) from None
        size = os.fstat(self._handle).st_size
        if size > MAX_BYTES:
            raise InvalidOption("the file of results is too large", got=f"{size:,} bytes", remedy=_REMEDY)
        with open(self._handle, "rb", closefd=False) as stream:
            content = stream.read(size)
        if not content or _HEADER.startswith(content):  # new, or killed while it was made
            os.ftruncate(self._handle, 0)
            os.write(self._handle, _HEADER)
            return {}
        if not content.startswith(_HEADER):
            raise InvalidOption("this is no file of results", got=self._path, remedy="Choose another file")
        end = content.rfind(b"\n") + 1
        lines = content[len(_HEADER) : end].split(b"\n")[:-1]
        results = dict(self._parse(number, line) for number, line in enumerate(lines, 2))
        os.ftruncate(self._handle, end)
        return results

    def _parse(self, number: int, line: bytes) -> tuple[str, ItemResult]:
        try:
            return _result(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            got = show(line.decode(errors="replace"))
            raise InvalidOption(f"line {number} of {self._path} is damaged", got=got, remedy=_REMEDY) from None


def _result(record: dict[str, Any]) -> tuple[str, ItemResult]:
    """Return the key and the result of a line. Raises ``ValueError``, ``TypeError`` or ``KeyError``."""
    counts = {name: record[name] for name in ("prompt_tokens", "output_tokens", "metric_tokens")}
    key, score, output = record["key"], record["score"], record["output"]
    are_right = type(score) is float and math.isfinite(score) and isinstance(key, str) and isinstance(output, str | None)
    if not are_right or not all(type(count) is int and 0 <= count < 2**53 for count in counts.values()):
        raise ValueError
    return key, ItemResult(score=score, output=output, **counts)
