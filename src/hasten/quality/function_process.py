"""``FunctionProcess``: a user's scoring function in a process that can be killed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hasten.core.errors import HastenError, InvalidOption
from hasten.quality import function_program

SECONDS = 2.0  # per call
TOTAL_SECONDS = 600.0  # of all calls of one process
START_SECONDS = 60.0  # to import the file
_MAX_ANSWER = 1 << 14  # bytes
_SPARE_SECONDS = 5.0  # after a limit, until the process ends itself if its caller is dead


class FunctionFailed(HastenError):
    """The function raised, returned no number, or exceeded a limit; the process has ended."""


class FunctionProcess:
    """Calls a function of texts of a Python file, such as ``score(input, output, reference)``.

    It is for one thread. The file is the user's own code and has all the user's rights: the process protects from hangs and
    crashes, and from nothing else. The process starts at the first call.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        *,
        seconds: float = SECONDS,
        total: float = TOTAL_SECONDS,
        start: float = START_SECONDS,
        max_bytes: int | None = None,
    ) -> None:
        """``max_bytes``: memory of its own that the process may take; None: no limit."""
        self._max_bytes = max_bytes
        self._file, self._name = file, name
        self._seconds, self._start_seconds, self._left = seconds, start, total
        self._total = total
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = _nothing

    def call(self, *texts: str) -> float:
        """Return the score, a finite number; it is 1 for True and 0 for False.

        Raises ``FunctionFailed`` and ``InvalidOption``.
        """
        try:
            process = self._started()
            limit = min(self._seconds, self._left)
            begin = time.monotonic()
            answer = self._ask(process, {"arguments": texts}, limit)
            self._left -= time.monotonic() - begin
        except BaseException:  # also an interrupt: the answer would be taken for that of the next call
            self.close()
            raise
        score = answer.get("score")
        if not isinstance(score, float) or not math.isfinite(score):
            self.close()
            raise FunctionFailed("it fails", got=answer.get("fault"))
        return score

    def close(self) -> None:
        """Kill the process and its children. A later call starts a new one."""
        self._end()
        self._process, self._end = None, _nothing

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        limit = max(self._seconds, self._start_seconds) + _SPARE_SECONDS
        try:
            # Its own process group keeps a Ctrl-C at the terminal from it, and has its children.
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    function_program.__file__,
                    str(self._file),
                    self._name,
                    str(limit),
                    str(self._max_bytes or 0),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            raise HastenError("the process of a scoring function cannot be started", got=error) from None
        self._process = process
        self._end = weakref.finalize(self, _end, process, os.getpid())
        answer = self._receive(process, self._start_seconds, "to import")
        if answer.get("ready") is not True:
            raise InvalidOption(f"the file {self._file} cannot be imported", got=answer.get("fault"), remedy="Correct it")
        return process

    def _ask(self, process: subprocess.Popen[bytes], message: dict[str, Any], limit: float) -> dict[str, Any]:
        assert process.stdin is not None
        if limit <= 0:
            raise FunctionFailed("it takes too long in all", allowed=f"up to {self._total:g} s for all items")
        data = memoryview((json.dumps(message) + "\n").encode())
        os.set_blocking(process.stdin.fileno(), False)  # a function that reads nothing must not block the writer
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while data:
                if not selector.select(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise self._too_slow(limit)
                try:
                    data = data[os.write(process.stdin.fileno(), data) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise FunctionFailed("its process ended") from None
        return self._receive(process, limit, "")

    def _receive(self, process: subprocess.Popen[bytes], limit: float, action: str) -> dict[str, Any]:
        """Return the next line as JSON."""
        assert process.stdout is not None
        deadline, data = time.monotonic() + limit, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise self._too_slow(limit, action)
                part = os.read(process.stdout.fileno(), _MAX_ANSWER)
                if not part or len(data) > _MAX_ANSWER:
                    raise FunctionFailed("its process ended")
                data += part
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise FunctionFailed("its process sent nonsense")
        return answer

    def _too_slow(self, limit: float, action: str = "") -> FunctionFailed:
        if not action and limit < self._seconds:
            return FunctionFailed("it takes too long in all", allowed=f"up to {self._total:g} s for all items")
        return FunctionFailed(f"it takes too long{action and ' ' + action}", allowed=f"up to {limit:g} s")


def _nothing() -> None:
    """Stand for the end of a process that does not run."""


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):
            stream.close()
    if os.getpid() == owner:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
