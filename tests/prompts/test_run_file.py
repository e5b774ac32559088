"""Results of a run survive SIGKILL; torn lines are cut off, and damaged or foreign files are one sentence."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.core.errors import InvalidOption
from hasten.prompts.evaluation import ItemResult
from hasten.prompts.run_file import RunFile

WRITER = """
import os, sys
from pathlib import Path
from hasten.prompts.run_file import RunFile
from tests.prompts.test_run_file import result_of
run, number = RunFile(Path(sys.argv[1])), int(sys.argv[2])
while True:
    run.add(str(number), result_of(number))
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def result_of(number: int) -> ItemResult:
    output = None if number % 5 == 0 else "é\n" * (number * 37 % 900)
    return ItemResult(score=number / 7, output=output, prompt_tokens=number, output_tokens=2, metric_tokens=1)


def stored(file: Path, num: int) -> list[ItemResult | None]:
    with RunFile(file) as run:
        return [run.get(str(number)) for number in range(num)]


def test_results_survive_kills(tmp_path: Path) -> None:
    file, num_written = tmp_path / "run.jsonl", 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for kill in range(3):
        command = [sys.executable, "-c", WRITER, str(file), str(num_written)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None
            num_lines = len([writer.stdout.readline() for _ in range(random.Random(kill).randint(1, 60))])
            writer.kill()
            num_lines += len(writer.stdout.readlines())
        assert writer.returncode == -signal.SIGKILL
        num_written += num_lines
        assert stored(file, num_written) == [result_of(number) for number in range(num_written)]
    assert num_written >= 3


def test_a_line_without_an_end_is_cut_off_wherever_the_writer_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    with RunFile(file) as run:
        run.add("0", result_of(0))
        start = file.stat().st_size
        run.add("1", result_of(1))
    content = file.read_bytes()
    for size in [*range(26), *range(start, len(content), 7), len(content)]:
        file.write_bytes(content[:size])
        with RunFile(file) as run:
            expected = 2 if size == len(content) else 1 if size >= start else 0
            assert len(run) == expected
            run.add("2", result_of(2))
        assert stored(file, 3)[2] == result_of(2) and len(file.read_bytes().splitlines()) == expected + 2


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    with RunFile(tmp_path / "new" / "run.jsonl"):
        assert stat.S_IMODE((tmp_path / "new" / "run.jsonl").stat().st_mode) == 0o600


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    with RunFile(file), pytest.raises(InvalidOption, match="another process uses"):
        RunFile(file)
    RunFile(file).close()


HEADER = '{"hasten_prompt_run": 1}\n'
GOOD = {"key": "k", "score": 1.0, "prompt_tokens": 1, "output_tokens": 1, "metric_tokens": 0, "output": None}


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[" * 10_000,
        "3",
        "{}",
        *(
            json.dumps({**GOOD, **wrong})
            for wrong in (
                {"score": "1"},
                {"score": float("nan")},
                {"score": True},
                {"key": 3},
                {"output": 3},
                {"prompt_tokens": -1},
                {"output_tokens": 1.5},
                {"metric_tokens": 10**400},
            )
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(f"{HEADER}{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(InvalidOption, match=r"line 3 of .*run.jsonl is damaged"):
        RunFile(file)


def test_other_files_are_left_as_they_are(tmp_path: Path) -> None:
    for content in (b"my own notes\n", b'{"hasten_prompt_run": 2}\n', bytes(range(256))):
        (tmp_path / "notes").write_bytes(content)
        with pytest.raises(InvalidOption, match="no file of results"):
            RunFile(tmp_path / "notes")
        assert (tmp_path / "notes").read_bytes() == content
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidOption, match="no ordinary file"):
        RunFile(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "notes" / "x", Path("bad\0name")):
        with pytest.raises(InvalidOption, match="cannot be opened"):
            RunFile(path)
