"""A real Redis server in a folder of its own, on a Unix socket, so that test processes do not meet."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import redis

START_SECONDS = 30.0  # on a busy machine


class RedisServer:
    """A server that a test can kill and start again. Its data survive ``stop`` only if they were saved."""

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("redis-server")
        assert program is not None, "these tests need redis-server: on Debian and Ubuntu, apt-get install redis-server"
        self.folder, self.path = folder, folder / "s"  # short, because a path of a socket has at most 107 bytes
        self._command = [program, "--port", "0", "--unixsocket", str(self.path), "--dir", str(folder), "--save", "", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def client(self) -> redis.Redis:
        """Return the package's own client: the tests' view of what is stored."""
        return redis.Redis(unix_socket_path=str(self.path), socket_timeout=START_SECONDS, protocol=2)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.path.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            try:
                self._process.wait(0.005)  # returns when it has died
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, "redis-server does not answer"
            else:
                raise AssertionError("redis-server did not start: " + (self.folder / "log").read_text(errors="replace"))

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def save(self) -> None:
        """Write the data to the folder; the next ``start`` reads them."""
        with self.client() as client:
            client.save()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(START_SECONDS)
            try:
                sock.connect(str(self.path))
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # while it loads data it says -LOADING
            except OSError:
                return False
