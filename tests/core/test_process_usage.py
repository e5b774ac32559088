"""``process_usage`` agrees with the operating system's own figures."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from hasten.core import process_usage as module
from hasten.core.process_usage import process_usage


def test_the_figures_are_those_of_this_process() -> None:
    usage, again = process_usage(), resource.getrusage(resource.RUSAGE_SELF)
    assert usage["pid"] == os.getpid()
    assert usage["cpu_seconds"] == pytest.approx(again.ru_utime + again.ru_stime, abs=0.5)
    if sys.platform == "linux":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        assert usage["resident_bytes"] == pytest.approx(int(status["VmRSS"].split()[0]) * 1024, rel=0.05)


@pytest.mark.parametrize("text", [None, "", "7", "a b c"])
def test_without_proc_the_resident_size_is_unknown(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "statm"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(module, "STATM", path)
    assert process_usage()["resident_bytes"] is None
