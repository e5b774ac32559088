"""Commands such as ``hasten serve`` that run until they are told to end."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

START_SECONDS = 60.0  # on a busy machine
END_SECONDS = 45.0
SHARED = "hasten serve demo"  # needs no files, so pages share one server of it


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class ServedCommand:
    """A process that answers HTTP on a port of this machine."""

    def __init__(
        self, command: Sequence[str], port: int, *, path: str = "/health", environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the command and wait until ``path`` is answered with 200."""
        self.port, self._log = port, tempfile.TemporaryFile()  # noqa: SIM115
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env=variables, start_new_session=True
        )
        try:
            self._wait_for(path)
        except BaseException:
            self.kill()
            raise

    def _wait_for(self, path: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.status(path) != 200:
            try:
                self.process.wait(0.02)  # returns when it has died
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"{self.process.args} does not answer: {self.output()}"
            else:
                raise AssertionError(f"{self.process.args} did not start: {self.output()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def output(self) -> str:
        """Return what the process has written so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def status(self, path: str, headers: Mapping[str, str] | None = None) -> int | None:
        """Return the status of a GET; None if nothing listens."""
        return self.get(path, headers)[0]

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int | None, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return None, b""
        finally:
            connection.close()

    def end(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(END_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and what it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()


class ServedCommands:
    """The servers that pages start."""

    def __init__(self) -> None:
        self._servers: dict[str, ServedCommand] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            codes = {key: server.end() for key, server in self._servers.items()}
        finally:
            for server in self._servers.values():
                server.kill()
        assert set(codes.values()) <= {0}, codes

    def start(self, command: str) -> ServedCommand:
        """Return a server that runs a command ``hasten serve ...`` in the current folder, on a free port."""
        key = SHARED if command.split("#")[0].strip() == SHARED else f"{Path.cwd()}: {command}"
        if key not in self._servers:
            port = free_port()
            words = shlex.split(command, comments=True)[1:]
            self._servers[key] = ServedCommand([sys.executable, "-m", "hasten", *words, "--port", str(port)], port)
        return self._servers[key]
