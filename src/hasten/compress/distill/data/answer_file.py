"""``AnswerFile``: the answers of a teacher by request, from which a killed run goes on.

The first line has the settings of the run; every other line is one answer::

    {"hasten_data": 1, "settings": {"command": "generate", "seed": 0, ...}}
    {"key": "9f2c...", "answer": [...]}

Only the keys and the places of the lines are in memory. A process that is killed while it writes leaves a line without an
end. It is cut off when the file is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hasten.core.errors import CapacityError, InvalidOption, show

FORMAT = 1
SUFFIX = ".partial"
MAX_HEADER = 1 << 20  # bytes
_MAX_SHOWN = 8  # settings that differ, in a message


def answer_path(out: Path) -> Path:
    """Return the path of the answers for the output file ``out``."""
    return out.with_name(out.name + SUFFIX)


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise ``InvalidOption`` if ``path`` holds a run with other settings, or something else."""
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise InvalidOption("the answers are kept in a file that is none", got=path, remedy="Give another path with --out")
    try:
        with path.open("rb") as stream:
            first = stream.readline(MAX_HEADER)
    except OSError as error:
        raise _opening_error(path, error) from None
    if first.endswith(b"\n"):
        _compare(path, _read_header(path, first), settings)
    elif first and not _is_cut_header(first):
        raise _no_answers(path)


class AnswerFile:
    """The answers of one run, for one process at a time.

    ``settings`` are the options of the run, to refuse those of another one. At the end of a context, a file without answers is
    removed. Raises ``InvalidOption`` for a file that is damaged, that has other settings, or that another process uses.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}  # key -> start and length of the line
        check_settings(path, settings)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o600)
        except (OSError, ValueError) as error:
            raise _opening_error(path, error) from None
        try:
            self._lock()
            self._end = self._read(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._places and self._handle >= 0:  # a wrong option should not bind the next command
            self.path.unlink(missing_ok=True)
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Any:
        """Return a kept answer as plain data."""
        start, length = self._places[key]
        return json.loads(os.pread(self._handle, length, start))["answer"]

    def add(self, answers: Sequence[tuple[str, Any]]) -> None:
        """Keep answers. Raises ``CapacityError`` if the disk is full."""
        lines = [(key, _line({"key": key, "answer": answer})) for key, answer in answers]
        self._append(b"".join(line for _, line in lines))
        place = self._end - sum(len(line) for _, line in lines)
        for key, line in lines:
            self._places[key] = (place, len(line))
            place += len(line)

    def remove(self) -> None:
        """Remove the file, when its output is complete, and close it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            raise _no_answers(self.path)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "Wait for it, or give another path with --out"
            raise InvalidOption("another process writes these data", got=self.path, remedy=remedy) from None

    def _read(self, settings: Mapping[str, Any]) -> int:
        """Note the places of all answers, cut off what is incomplete, and return the end of the file."""
        with open(self._handle, "rb", closefd=False) as stream:
            first = stream.readline(MAX_HEADER)
            if not first.endswith(b"\n"):  # new, or killed while it was made
                if first and not _is_cut_header(first):
                    raise _no_answers(self.path)
                os.ftruncate(self._handle, 0)
                self._end = 0
                self._append(_line({"hasten_data": FORMAT, "settings": settings}))
                return self._end
            _compare(self.path, _read_header(self.path, first), settings)
            end = len(first)
            for number, line in enumerate(stream, 2):
                if not line.endswith(b"\n"):
                    break
                self._places[self._read_key(number, line)] = (end, len(line))
                end += len(line)
        os.ftruncate(self._handle, end)
        return end

    def _read_key(self, number: int, line: bytes) -> str:
        try:
            record = json.loads(line)
            key, _ = record["key"], record["answer"]
            if not isinstance(key, str):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            got = show(line.decode(errors="replace"))
            raise InvalidOption(f"line {number} of {self.path} is damaged", got=got, remedy=_remedy(self.path)) from None
        return key

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._handle, view, self._end)
                self._end, view = self._end + count, view[count:]
        except OSError as error:
            raise CapacityError(f"{self.path} cannot be written", got=error.strerror, remedy="Free space there") from None


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _is_cut_header(first: bytes) -> bool:
    """Whether this may be what a process left that was killed in its first write."""
    begin = b'{"hasten_data": '
    return len(first) < MAX_HEADER and (first.startswith(begin) or begin.startswith(first))


def _read_header(path: Path, first: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(first)
        settings = record["settings"]
        if record["hasten_data"] != FORMAT or not isinstance(settings, dict):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _no_answers(path) from None
    return settings


def _compare(path: Path, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    given = json.loads(json.dumps(settings))
    names = [name for name in sorted({*given, *saved}) if saved.get(name) != given.get(name)]
    if names:
        raise InvalidOption(
            f"{path} holds an unfinished run with other settings",
            got=", ".join(f"{name} was {show(saved.get(name))} and is {show(given.get(name))}" for name in names[:_MAX_SHOWN]),
            remedy=f"Repeat the first command, give another path with --out, or remove {path}",
        )


def _no_answers(path: Path) -> InvalidOption:
    return InvalidOption("the answers of the teacher are kept in a file that holds something else", got=path, remedy=_remedy(path))


def _opening_error(path: Path, error: OSError | ValueError) -> InvalidOption:
    got = getattr(error, "strerror", None) or error
    return InvalidOption(f"the file {path} cannot be opened", got=got, remedy="Give another path with --out")


def _remedy(path: Path) -> str:
    return f"Remove {path}, or give another path with --out"
