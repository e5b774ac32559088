"""A user's scoring function that raises, hangs, crashes or prints costs one sentence, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hasten.core.errors import InvalidOption
from hasten.quality.function_process import FunctionFailed, FunctionProcess

Start = Callable[..., FunctionProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function from the body of ``score`` to its process."""
    started = []

    def make(body: str, before: str = "", **limits: Any) -> FunctionProcess:
        file = tmp_path / "mine.py"
        file.write_text(f"import os, sys, time\n{before}\ndef score(input, output, reference):\n    {body}\n")
        started.append(FunctionProcess(file, "score", **limits))
        return started[-1]

    yield make
    for process in started:
        process.close()


def pid(process: FunctionProcess) -> int:
    assert process._process is not None
    return process._process.pid


def is_running(number: int) -> bool:
    """Return whether a process runs; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_returns_scores_of_any_text(start: Start) -> None:
    process = start("print('noise', flush=True); return len(output) / len(reference)")
    assert [process.call("i", text, "ab") for text in ("", "a", "\u2028\n\r\0é", "x" * 300_000)] == [0, 0.5, 2.5, 150_000]


def test_it_sees_modules_beside_the_file(start: Start, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 0.25\n")
    assert start("import beside; return beside.VALUE").call("i", "o", "r") == 0.25


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("return None", "TypeError"),
        ("return 'good'", "ValueError"),
        ("return float('nan')", "it returned nan"),
        ("return 1e999", "it returned inf"),
        ("sys.exit(0)", "SystemExit"),
        ("os._exit(3)", "its process ended"),
        ("os.kill(os.getpid(), 11)", "its process ended"),
        ("raise ValueError('x' * 10**7)", "ValueError: xxx"),
        ("return score(input, output, reference)", "RecursionError"),
    ],
)
def test_a_fault_is_one_sentence(start: Start, body: str, words: str) -> None:
    process = start(body)
    with pytest.raises(FunctionFailed, match=words) as caught:
        process.call("i", "o", "r")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    assert process._process is None


def test_a_hang_ends_at_its_limit_with_its_children(start: Start, tmp_path: Path) -> None:
    child = tmp_path / "child"
    before = f"""
def hang():
    if (forked := os.fork()) == 0:
        time.sleep(600)
    open({str(child)!r}, "w").write(str(forked))
    while True:
        pass
"""
    process = start("hang() if output == 'hang' else None; return 1", before, seconds=0.5)
    assert process.call("i", "fast", "r") == 1
    first = pid(process)
    begin = time.monotonic()
    with pytest.raises(FunctionFailed, match=r"it takes too long: allowed: up to 0.5 s"):
        process.call("i", "hang", "r")
    assert 0.4 < time.monotonic() - begin < 5
    assert not is_running(first)
    with contextlib.suppress(ProcessLookupError):  # it has ended, and its parent has read its code
        descriptor = os.pidfd_open(int(child.read_text()))
        assert select.select([descriptor], [], [], 30)[0]
        os.close(descriptor)
    assert process.call("i", "fast", "r") == 1  # a new process
    assert pid(process) != first


def test_a_function_that_reads_nothing_does_not_block_the_writer(start: Start) -> None:
    process = start("return 1", "import threading", seconds=0.5)
    process.call("i", "o", "r")
    os.kill(pid(process), signal.SIGSTOP)
    with pytest.raises(FunctionFailed, match="too long"):
        process.call("i", "x" * 10**6, "r")


def test_all_calls_together_have_a_limit(start: Start) -> None:
    process = start("time.sleep(0.06); return 1", total=0.1)
    assert process.call("i", "o", "r") == 1
    with pytest.raises(FunctionFailed, match=r"too long in all: allowed: up to 0.1 s for all items"):
        process.call("i", "o", "r")


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("1 / 0", "cannot be imported.*ZeroDivisionError"),
        ("def f(:", "cannot be imported.*SyntaxError"),
        ("sys.exit(1)", "cannot be imported.*SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_sentence(start: Start, before: str, words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        start("return 1", before).call("i", "o", "r")


def test_a_file_that_hangs_and_a_missing_function_are_one_sentence(start: Start, tmp_path: Path) -> None:
    with pytest.raises(FunctionFailed, match=r"too long to import: allowed: up to 0.3 s"):
        start("return 1", "time.sleep(600)", start=0.3).call("i", "o", "r")
    process = FunctionProcess(tmp_path / "mine.py", "other")
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(InvalidOption, match="it has no function other"):
        process.call("i", "o", "r")


def test_a_function_that_hangs_dies_after_its_caller(tmp_path: Path) -> None:
    """The caller is killed while the function hangs; nothing can tell the process, so it ends itself."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "mine.py").write_text(
        "import os, time\ndef score(input, output, reference):\n"
        f"    with open({str(gate)!r}, 'w') as gate:\n        gate.write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    program = (
        "import sys; from pathlib import Path; from hasten.quality import function_process as f\n"
        "f._SPARE_SECONDS = 0.2\n"
        f"f.FunctionProcess(Path({str(tmp_path / 'mine.py')!r}), 'score', start=1.5, seconds=1.5).call('i', 'o', 'r')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    reader = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as caller:
        assert select.select([reader], [], [], 60)[0], "the function is not called"
        number = int(os.read(reader, 20))
        process = os.pidfd_open(number)
        caller.kill()
    assert select.select([process], [], [], 30)[0], "the function's process goes on"
    os.close(process)
    os.close(reader)


def test_a_limit_of_memory_ends_the_call_and_not_the_caller(start: Start) -> None:
    process = start("return len(bytearray(int(output) << 20))", max_bytes=1 << 30)
    assert process.call("i", "100", "r") == 100 << 20
    with pytest.raises(FunctionFailed, match="MemoryError"):
        process.call("i", "1100", "r")


def test_a_function_has_as_many_arguments_as_texts_are_given(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def reward(*texts):\n    return len(texts)\n")
    process = FunctionProcess(tmp_path / "mine.py", "reward")
    assert [process.call(), process.call("a"), process.call("a", "b")] == [0, 1, 2]
    process.close()
