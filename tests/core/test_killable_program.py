"""``KillableProgram``: whatever its program does, a message ends in time, and the next one is answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hasten.core.errors import HastenError
from hasten.core.killable_program import KillableProgram, ProgramEnded

PROGRAM = """
import os, struct, sys
from hasten.core.program import Limits, answer_messages

def answer(message):
    do = message["do"]
    if do == "spin":
        while True:
            pass
    if do == "exit":
        os._exit(3)
    if do == "memory":
        return {"length": len(b"x" * message["bytes"])}
    if do == "long":
        return {"text": "x" * message["length"]}
    if do == "raw":
        data = bytes.fromhex(message["hex"])
        os.write(0, data)
        while True:
            pass
    if do == "list":
        return [1]
    if do == "raise":
        raise ValueError(message)
    return message

answer_messages(answer, Limits(memory=64 << 20, memory_per_input_byte=0, cpu_seconds=1))
"""
LENGTH_10 = (10).to_bytes(8, "big").hex()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KillableProgram]:
    (tmp_path / "told_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    program = KillableProgram("told_program", "does as it is told")
    yield program
    program.close()


def ask(program: KillableProgram, seconds: float = 20.0, max_bytes: int = 1 << 20, **message: Any) -> dict[str, Any]:
    return program.ask(message, seconds, max_bytes)


def check_it_answers(program: KillableProgram) -> None:
    message = {"do": "echo", "text": "你\ud800\0", "number": 2**70, "list": [None, True]}
    assert ask(program, **message) == message


def test_messages_come_back(program: KillableProgram) -> None:
    assert program.pid is None
    check_it_answers(program)
    pid = program.pid
    check_it_answers(program)
    assert program.pid == pid is not None
    program.close()
    assert program.pid is None
    check_it_answers(program)


@pytest.mark.parametrize(
    "message",
    [
        {"do": "exit"},
        {"do": "raise"},
        {"do": "list"},
        {"do": "memory", "bytes": 1 << 30},
        {"do": "long", "length": 2 << 20},
        {"do": "raw", "hex": "ff" * 8},  # a length of 2**64 - 1 bytes
        {"do": "raw", "hex": LENGTH_10 + b"not JSON!!".hex()},
        {"do": "raw", "hex": LENGTH_10 + "ff" * 10},
        {"do": "raw", "hex": (2).to_bytes(8, "big").hex() + b"[]".hex()},
    ],
    ids=str,
)
def test_nonsense_costs_the_process_alone(program: KillableProgram, message: dict[str, Any]) -> None:
    check_it_answers(program)
    pid = program.pid
    with pytest.raises(ProgramEnded):
        ask(program, **message)
    assert program.pid is None
    check_it_answers(program)
    assert program.pid != pid


@pytest.mark.parametrize("message", [{"do": "spin"}, {"do": "raw", "hex": "00"}, {"do": "raw", "hex": LENGTH_10 + "00"}], ids=str)
def test_what_takes_too_long_is_killed(program: KillableProgram, message: dict[str, Any]) -> None:
    check_it_answers(program)
    pid, start = program.pid, time.monotonic()
    with pytest.raises(TimeoutError):
        ask(program, seconds=0.2, **message)
    assert time.monotonic() - start < 5
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    check_it_answers(program)


def test_neither_the_start_nor_the_messages_before_count(program: KillableProgram) -> None:
    """A message waits for one that spins for half a second, and for the process that replaces it, and has its time then."""
    with ThreadPoolExecutor(1) as pool:
        check_it_answers(program)
        spinning = pool.submit(ask, program, seconds=0.5, do="spin")
        while not program._lock.locked():
            os.sched_yield()
        assert ask(program, seconds=0.45, do="echo") == {"do": "echo"}
        assert isinstance(spinning.exception(), TimeoutError)


def test_a_deadline_counts_from_the_call(program: KillableProgram) -> None:
    check_it_answers(program)
    with pytest.raises(TimeoutError):
        program.ask({"do": "spin"}, 60.0, 1 << 10, deadline=time.monotonic() + 0.1)


def test_the_limit_of_processor_time_ends_a_program_whose_caller_waits(program: KillableProgram) -> None:
    with pytest.raises(ProgramEnded):
        ask(program, seconds=60, do="spin")
    check_it_answers(program)


def test_the_limit_of_memory_is_per_message(program: KillableProgram) -> None:
    for _ in range(8):
        assert ask(program, do="memory", bytes=32 << 20) == {"length": 32 << 20}


def test_a_process_that_was_killed_from_outside_is_replaced(program: KillableProgram) -> None:
    check_it_answers(program)
    assert program.pid is not None
    os.kill(program.pid, signal.SIGKILL)
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    check_it_answers(program)


def test_threads_take_turns_while_some_of_them_break_the_process(program: KillableProgram) -> None:
    def work(i: int) -> bool:
        if i % 9 == 4:
            with pytest.raises(ProgramEnded):
                ask(program, do="exit")
            return True
        return ask(program, do="echo", i=i) == {"do": "echo", "i": i}

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(60)))


def test_a_program_that_does_not_start_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_program.py").write_text("raise SystemExit(1)")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("broken_program", "no_such_program"):
        with pytest.raises(HastenError, match=f"the process that tries things does not start.*{module}"):
            ask(KillableProgram(module, "tries things"), do="echo")
