"""A worker process as the benchmark sees it: ask it something and wait; between its turns it is stopped by a signal.

A stopped process takes no processor time at all, whatever its threads would do while they wait. So no engine's own way of waiting
(OMP_WAIT_POLICY and the like) needs to be changed, which would slow some of them down in their own turns.
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


class Failed(Exception):
    """The engine could not do what was asked; the message says why."""


class Worker:
    """One engine's process. Not to be shared between threads."""

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

    def ask(self, timeout: float = 1200, **command: Any) -> dict[str, Any]:
        """Raises ``Failed`` if the engine does, dies or takes longer than ``timeout`` seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(timeout)
        except BrokenPipeError:
            line = b""
        if not line:
            raise Failed(f"the process ended with {self.process.wait()}; its last words: {self._last_words()}")
        self.process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _line(self, timeout: float) -> bytes:
        output, found, end = self.process.stdout, b"", time.monotonic() + timeout
        assert output is not None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.process.kill()
                    raise Failed(f"no answer within {timeout:.0f} s")
                read = os.read(output.fileno(), 65536)
                if not read:
                    return b""
                found += read
        return found

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"


def _environment(threads: int, cache: Path) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    passed = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "MKL_", "GOMP_"))}
    return (
        passed
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
