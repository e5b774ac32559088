"""A program that runs ``hasten`` in children, each of which kills itself at one moment.

It has imported hasten once, so that a run takes a second. A line of standard input is a run in JSON: ``last``, the moment at which
it ends (0: never), ``path``, the output file, ``log`` and ``arguments``. A line of standard output is its exit code. Moments are
counted from 1: the output and the files beside it that are opened, renamed or removed, and both ends of a write of answers. The log
gets the key of every kept answer, and ``end N`` after N moments.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import hasten.compress.distill.data.data_file
import hasten.compress.distill.data.feedback
import hasten.compress.distill.data.model_teacher
import hasten.entrypoints.llm  # noqa: F401
from hasten.cli.main import run
from hasten.compress.distill.data.answer_file import AnswerFile

EVENTS = {"open", "os.rename", "os.remove"}


def run_child(last: int, path: str, log: str, arguments: Sequence[str]) -> int:
    """Run a command, with an end by SIGKILL at its moment ``last``, and return its exit code."""
    num_moments, target, add = 0, os.path.abspath(path), AnswerFile.add

    def note(lines: Sequence[str]) -> None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, "".join(f"{line}\n" for line in lines).encode())
        os.close(handle)

    def moment() -> None:
        nonlocal num_moments
        num_moments += 1
        if num_moments == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(given[0], str | os.PathLike) and os.path.abspath(os.fspath(given[0])).startswith(target):
            moment()

    def counted_add(self: AnswerFile, answers: Sequence[tuple[str, Any]]) -> None:
        moment()
        add(self, answers)
        note([key for key, _ in answers])
        moment()

    AnswerFile.add = counted_add
    sys.addaudithook(hook)
    sys.stdin = open(os.devnull)  # noqa: SIM115 (the command reads it to its end)
    code = run(arguments)
    note([f"end {num_moments}"])
    return code


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(run_child(**json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
