"""``KillableProgram``: asks a program in a process of its own, which is killed when it takes too long.

``hasten.core.program`` is the inner side.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from hasten.core.errors import HastenError
from hasten.core.program import receive, send

_START_SECONDS = 60.0


class ProgramEnded(Exception):
    """The program ended, or sent nonsense."""


class KillableProgram:
    """A module that is run as a program. Threads may share it; their messages take turns.

    The process starts at the first message and ends with its owner. What breaks it costs the process, and the next message gets a
    new one. A message takes about 0.1 ms more than a call.
    """

    def __init__(self, module: str, purpose: str) -> None:
        """``purpose``: what the process does, as in "the process that renders templates"."""
        self._module, self._purpose = module, purpose
        self._lock = threading.Lock()
        self._process: _RunningProcess | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process that runs; None if none does."""
        return None if self._process is None else self._process.pid

    def ask(self, message: Mapping[str, Any], seconds: float, max_bytes: int, *, deadline: float | None = None) -> dict[str, Any]:
        """Return the answer to a message.

        ``seconds``: to answer, from the message's turn on; the start of the process does not count. ``max_bytes``: of the answer.
        ``deadline``: when the answer has to be there at the latest, on ``time.monotonic``. Raises ``TimeoutError``,
        ``ProgramEnded``, and ``HastenError`` if the program cannot be started.
        """
        with self._lock:
            try:
                process = self._started()
                end = time.monotonic() + seconds
                return process.ask(message, end if deadline is None else min(end, deadline), seconds, max_bytes)
            except TimeoutError:
                self._end()
                raise
            except (OSError, EOFError, ValueError):  # the system killed it, or it sent nonsense
                self._end()
                raise ProgramEnded from None
            except BaseException:  # an interrupt: the answer would be taken for that of the next message
                self._end()
                raise

    def close(self) -> None:
        """End the process. A later message starts a new one."""
        with self._lock:
            self._end()

    def _started(self) -> _RunningProcess:
        if self._process is not None and not self._process.is_running():
            self._end()
        if self._process is None:
            self._process = _RunningProcess(self._module, self._purpose)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _RunningProcess:
    def __init__(self, module: str, purpose: str) -> None:
        ours, theirs = socket.socketpair()
        self._connection, self._owner = ours, os.getpid()
        try:
            # The socket is its standard input, so that no inherited descriptor can be in the way, even if ours are closed.
            # Its own process group keeps a Ctrl-C at the terminal from it.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                process_group=0,
            )
        except (OSError, ValueError) as error:
            ours.close()
            raise HastenError(f"the process that {purpose} cannot be started", got=str(error)) from error
        finally:
            theirs.close()
        self._process = process
        self.end = weakref.finalize(self, _end, process, ours, self._owner)
        try:
            self._receive(time.monotonic() + _START_SECONDS, 1 << 10)
        except (OSError, EOFError, ValueError) as error:
            self.end()
            raise HastenError(
                f"the process that {purpose} does not start",
                got=f"{sys.executable} -m {module}: {error or type(error).__name__}",
                remedy="Run it to see why",
            ) from error
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether it runs and is not that of a parent that was forked."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, message: Mapping[str, Any], deadline: float, send_seconds: float, max_bytes: int) -> dict[str, Any]:
        """Return the answer. Raises ``TimeoutError``, ``EOFError`` and errors of the socket."""
        self._connection.settimeout(send_seconds)
        send(self._connection, message)
        return self._receive(deadline, max_bytes)

    def _receive(self, deadline: float, max_bytes: int) -> dict[str, Any]:
        def check(length: int) -> None:
            if length > max_bytes:
                raise ValueError(f"{length} bytes")

        answer = receive(_UntilDeadline(self._connection, deadline), check)
        if not isinstance(answer, dict):
            raise EOFError
        return answer


class _UntilDeadline:
    """A socket whose reads end at one moment, however the data is cut."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def recv(self, length: int) -> bytes:
        self._connection.settimeout(max(1e-3, self._deadline - time.monotonic()))
        return self._connection.recv(length)


def _end(process: subprocess.Popen[bytes], connection: socket.socket, owner: int) -> None:
    connection.close()
    if os.getpid() == owner:
        process.kill()
        process.wait()
