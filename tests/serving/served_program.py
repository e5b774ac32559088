"""``ServedProgram``: a server in a process of its own, whose output tells where it listens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # seconds


class ServedProgram:
    """``with ServedProgram("-m", "hasten", "serve", "demo", "--port", "0") as program:``; it is killed at the end."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        variables = {name: value for name, value in os.environ.items() if not name.startswith("HASTEN_") or name == "HASTEN_CACHE"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**variables, **paths, "OMP_NUM_THREADS": "1", **(environment or {})},
            cwd=cwd,
        )
        self.lines: list[str] = []  # of standard output, which is the access log, and standard error
        self._news = threading.Condition()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServedProgram:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.wait()

    @property
    def url(self) -> str:
        """Where it listens, once it does."""
        return re.findall(r"http://\S+", self.line("serves http"))[0]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, part: str) -> str:
        """Return the first line with a text, once there is one."""
        with self._news:
            self._news.wait_for(lambda: self._has_ended or any(part in line for line in self.lines), DEADLINE)
            found = next((line for line in self.lines if part in line), None)
        assert found is not None, f"no line with {part!r} in: {self.text}"
        return found

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code, once it has ended."""
        code = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()


def until(client: httpx.Client, path: str, status: int, seconds: float = DEADLINE) -> httpx.Response:
    """Ask a path until it answers with a status. The waits between are short, and bound by ``seconds`` altogether."""
    event = threading.Event()
    for _ in range(int(seconds / 0.05)):
        answer = client.get(path)
        if answer.status_code == status:
            return answer
        event.wait(0.05)
    raise AssertionError(f"{path} still answers {answer.status_code}: {answer.text}")
