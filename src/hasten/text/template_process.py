"""``TemplateProcess``: templates rendered within limits, in a process that can be killed.

A template, of a checkpoint or of a prompt, is a program of a stranger: it can loop for hours, or ask for gigabytes within one
expression, which no check from inside the interpreter can stop. So templates run in a small process that imports Jinja alone. The
process starts at the first template, serves one at a time, and ends with its owner. A template that exceeds a limit costs the
process, and the next one gets a new process. A call takes about 0.1 ms more than rendering in place.
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
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import CheckpointError, HastenError, InvalidRequest
from hasten.text import template_renderer

SECONDS = 2.0
OUTPUT_PER_INPUT = 4  # characters of text per character of template, messages and tools
MIN_OUTPUT = 64 << 10  # characters that any template may write
_START_SECONDS = 60.0
_LIMITS = f"{SECONDS:g} s, {template_renderer.MEMORY >> 20} MiB, 4 × the input + 64 Ki characters of text"


@dataclass(frozen=True, slots=True)
class TemplateKind:
    """How templates of one kind are rendered, and how error messages name them."""

    name: str  # as in "the chat template"
    inputs: str  # "these messages"
    syntax_error: type[HastenError]
    input_remedy: str  # after an error that the template raises
    limit_remedy: str
    is_strict: bool = False  # a value that is undefined raises an error; otherwise it is empty


CHAT_TEMPLATE = TemplateKind(
    name="the checkpoint's chat template",
    inputs="these messages",
    syntax_error=CheckpointError,
    input_remedy='Pass a list of {"role": ..., "content": ...}',
    limit_remedy="Shorten the messages, or render them yourself and use generate",
)


class TemplateExceedsLimits(InvalidRequest):
    """The template takes too long, too much memory, or writes too much with these messages."""


class TemplateProcess:
    """Renders templates in a process of its own. Threads may share it; their calls take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _RunningProcess | None = None

    def render(
        self,
        template: str,
        variables: Mapping[str, Any],
        input_length: int,
        deadline: float | None = None,
        kind: TemplateKind = CHAT_TEMPLATE,
    ) -> str:
        """Return the text of a template. ``input_length``: characters of template and variables.

        ``deadline``: when it has to be done, on ``time.monotonic``; None: in ``SECONDS`` from now.

        Raises ``InvalidRequest`` if the template raises an error or exceeds a limit, and the kind's syntax error, by default a
        ``CheckpointError``, if it is not a template.
        """
        max_length = OUTPUT_PER_INPUT * input_length + MIN_OUTPUT
        answer = self._ask({"template": template, "variables": variables, "max_length": max_length}, kind, deadline)
        return str(answer["text"])

    def variable_names(self, template: str, kind: TemplateKind = CHAT_TEMPLATE) -> frozenset[str]:
        """Return the names that the template reads and does not set. Errors as in ``render``."""
        return frozenset(self._ask({"template": template, "variables": None, "max_length": len(template)}, kind)["names"])

    def close(self) -> None:
        """End the process. A later call starts a new one."""
        with self._lock:
            self._end()

    def _ask(self, request: Mapping[str, Any], kind: TemplateKind, deadline: float | None = None) -> dict[str, Any]:
        request = {**request, "strict": kind.is_strict}
        with self._lock:
            try:
                process = self._started()
                answer = process.ask(request, time.monotonic() + SECONDS if deadline is None else deadline)
            except TimeoutError:
                self._end()
                raise _exceeds(kind, f"it takes more than {SECONDS:g} s") from None
            except (OSError, EOFError, ValueError):  # the system killed it, or it sent nonsense
                self._end()
                raise _exceeds(kind, "its process ended") from None
            except BaseException:  # an interrupt: the answer would be taken for that of the next call
                self._end()
                raise
        fault = answer.get("fault")
        if fault == "syntax":
            raise kind.syntax_error(f"{kind.name} cannot be read", got=answer["message"], remedy="Correct it")
        if fault == "template":
            raise InvalidRequest(f"{kind.name} refuses {kind.inputs}", got=answer["message"].rstrip("."), remedy=kind.input_remedy)
        if fault is not None:
            raise _exceeds(kind, answer["message"])
        return answer

    def _started(self) -> _RunningProcess:
        if self._process is not None and not self._process.is_running():
            self._end()
        if self._process is None:
            self._process = _RunningProcess()
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


class _RunningProcess:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection, self._owner = ours, os.getpid()
        try:
            # The socket is its standard input, so that no inherited descriptor can be in the way, even if ours are closed.
            # Its own process group keeps a Ctrl-C at the terminal from it.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", template_renderer.__name__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                process_group=0,
            )
        except (OSError, ValueError) as error:
            ours.close()
            raise HastenError("the process that renders templates cannot be started", got=str(error)) from error
        finally:
            theirs.close()
        self._process = process
        self.end = weakref.finalize(self, _end, process, ours, self._owner)
        try:
            self._receive(time.monotonic() + _START_SECONDS, 1 << 10)
        except (OSError, EOFError, ValueError) as error:
            self.end()
            raise HastenError(
                "the process that renders templates does not start",
                got=f"{sys.executable} -m {template_renderer.__name__}: {error or type(error).__name__}",
                remedy="Run it to see why",
            ) from error
        except BaseException:
            self.end()
            raise

    def is_running(self) -> bool:
        """Return whether it runs and is not that of a parent that was forked."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """Return the answer. Raises ``TimeoutError``, ``EOFError`` and errors of the socket."""
        self._connection.settimeout(SECONDS)
        template_renderer.send(self._connection, request)
        # JSON writes a character in six bytes at most.
        return self._receive(deadline, 6 * request["max_length"] + (1 << 16))

    def _receive(self, deadline: float, max_bytes: int) -> dict[str, Any]:
        def check(length: int) -> None:
            if length > max_bytes:
                raise ValueError(f"{length} bytes")

        answer = template_renderer.receive(_UntilDeadline(self._connection, deadline), check)
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


def _exceeds(kind: TemplateKind, how: str) -> TemplateExceedsLimits:
    return TemplateExceedsLimits(
        f"{kind.name} exceeds its limits with {kind.inputs}", got=how, allowed=_LIMITS, remedy=kind.limit_remedy
    )
