"""A server of the demo model in a process of the interpreter that HASTEN_PYTHON names, and the same model in process."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HASTEN = os.environ.get("HASTEN_PYTHON", "")  # empty where the tests of the project are collected
HERE = Path(__file__).parent
DEADLINE = 120  # seconds
OPTIONS = {"threads": 1, "kv_cache_memory": "64MiB", "max_model_len": 512}


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Run ``hasten serve demo`` and yield its URL when it is ready."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [HASTEN, "-m", "hasten", "serve", "demo", "--port=0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        found = first_url(process)
        wait_until_ready(found)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        finally:
            process.kill()


def first_url(process: subprocess.Popen[str]) -> str:
    """Return the URL that the server prints, and read on so that it never waits for a reader."""
    urls: queue.Queue[str] = queue.Queue()
    lines: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"serves (http://\S+)", line):
                urls.put(match[1])
        urls.put("")

    threading.Thread(target=read, daemon=True).start()
    url = urls.get(timeout=DEADLINE)
    assert url, "".join(lines)
    return url


def wait_until_ready(url: str) -> None:
    """Return when the first model is loaded: a request for it waits so long."""
    body = json.dumps({"prompt": "x"}).encode()
    request = urllib.request.Request(f"{url}/tokenize", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        assert response.status == 200


@pytest.fixture(scope="session")
def in_process() -> Callable[[dict[str, Any]], Any]:
    """Return a function that asks the model in a process without a server; see ``in_process.py``."""

    def ask(question: dict[str, Any]) -> Any:
        question = {"options": OPTIONS, **question}
        command = [HASTEN, str(HERE / "in_process.py")]
        done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask
