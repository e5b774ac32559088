"""``Worker``: the process of one engine. It answers commands, and a signal stops it between them.

A stopped process uses no processor time, even if its idle threads would spin. So the engines keep their own settings, such as
OMP_WAIT_POLICY, whose change would slow some of them down.
"""

import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class EngineError(Exception):
    """The engine failed to run a command; the message has the reason."""


class Worker:
    """One engine's process. It must not be shared between threads."""

    def __init__(self, python: Path, program: str, *, threads: int, log: Path, cache: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.process = subprocess.Popen(
            [str(python), "-m", f"engines.workers.{program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            cwd=HERE.parent,
            env=_environment(threads, cache),
        )

    def call(self, timeout: float = 1200, **command: Any) -> dict[str, Any]:
        """Run a command and return its answer.

        Raises ``EngineError`` if the engine fails, dies or exceeds ``timeout`` seconds.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
            line = self._read_line(timeout)
        except BrokenPipeError:
            line = b""
        if not line:
            raise EngineError(f"the process ended with {self.process.wait()}; the last line of its log: {self._last_log_line()}")
        self.process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read_line(self, timeout: float) -> bytes:
        output, line, deadline = self.process.stdout, b"", time.monotonic() + timeout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.process.kill()
                    raise EngineError(f"no answer within {timeout:.0f} s")
                data = os.read(output.fileno(), 65536)
                if not data:
                    return b""
                line += data
        return line

    def _last_log_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"


def _environment(threads: int, cache: Path) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "MKL_", "GOMP_"))}
    return (
        inherited
        | dict.fromkeys(names, str(threads))
        | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1] / "src")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        }
    )
