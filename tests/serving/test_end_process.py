"""``end_process``: the process ends with its code, whatever its streams do."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("error", ["BrokenPipeError()", "ValueError('closed file')", "RuntimeError('reentrant call')"])
def test_no_stream_keeps_the_process(error: str) -> None:
    code = (
        "import io, sys\n"
        "from hasten.serving.end_process import end_process\n"
        f"class Stream(io.StringIO):\n    def flush(self): raise {error}\n"
        "sys.stdout = Stream()\n"
        "end_process(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 7
