"""``hasten data``: its files, its figures, its refusals, and runs that go on after Ctrl-C and after a kill."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import CommandOutput
from tests.exhaustive import repeats
from tests.prompts.endpoint_server import Asked, completion, send, serve

from hasten import LLM
from hasten.compress.distill.data.answer_file import AnswerFile
from hasten.core.sampling_params import SamplingParams
from hasten.training.corpus import derived_seed

Hasten = Callable[..., CommandOutput]
PROGRAM = Path(__file__).with_name("killed_data.py")
ENGINE = ("--threads", "1", "--kv-cache-memory", "16MiB", "--max-model-len", "512", "--max-num-seqs", "2")
SHORT = ("--max-tokens", "6", *ENGINE)
SPEED = r"\d+ requests \| [\d,]+ prompt tokens \(\d+% from the prefix cache\) \| [\d,]+ output tokens in [\d.]+ s, [\d,.]+ tokens/s"
NAMES = ("name", "size", "color", "width", "value", "index", "parent", "key", "count", "path")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with prompts, seeds and a student's outputs."""
    monkeypatch.chdir(tmp_path)
    write("prompts.txt", "\n".join(f"def get_{name}(self):" for name in NAMES))
    pairs = [{"input": f"def get_{name}(self):", "output": f"return self.{name}"} for name in NAMES[:5]]
    write("seeds.jsonl", "\n".join(map(json.dumps, pairs)))
    outputs = [{"input": pair["input"], "outputs": [pair["output"], "pass", "x = 1"]} for pair in pairs]
    write("outputs.jsonl", "\n".join(map(json.dumps, outputs)))
    return tmp_path


def write(name: str, content: str) -> None:
    Path(name).write_text(content)


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_generated_outputs_are_those_of_the_model(hasten: Hasten) -> None:
    shown = hasten("data", "generate", "demo", "--prompts", "prompts.txt", "--out", "o.jsonl", "--n", "2", "--keep-cut", *SHORT)
    assert shown.code == 0, shown.err
    assert re.search(f"20 records written to o.jsonl\n{SPEED}", shown.err)
    records = read("o.jsonl")
    assert [record["input"] for record in records[::2]] == Path("prompts.txt").read_text().split("\n")
    with LLM("demo", threads=1, max_model_len=512, kv_cache_memory="16MiB") as llm:
        params = llm.default_sampling_params().replace(n=2, max_tokens=6, seed=derived_seed(0, "generate", 3))
        (expected,) = llm.generate(records[6]["input"], params, use_tqdm=False)
    assert [record["output"] for record in records[6:8]] == [completion.text for completion in expected.outputs]
    assert {record["finish_reason"] for record in records} <= {"length", "stop"}
    assert sorted(os.listdir()) == ["o.jsonl", "outputs.jsonl", "prompts.txt", "seeds.jsonl"]


def test_outputs_that_were_cut_are_dropped_and_counted(hasten: Hasten) -> None:
    write("prompts.jsonl", '{"messages": [{"role": "user", "content": "Write a class."}], "id": 7}\n{"prompt": "class A:"}\n')
    arguments = ("data", "generate", "demo", "--prompts", "prompts.jsonl", "--out", "o.jsonl", "--samples", "2", *SHORT)
    shown = hasten(*arguments)
    assert shown.code == 2 and "dropped 4: cut at max_tokens" in shown.err and "no example was made" in shown.err
    shown = hasten(*arguments, "--keep-cut")
    assert "holds an unfinished run with other settings: got keep_cut was False and is True" in shown.err
    Path("o.jsonl.partial").unlink()
    assert hasten(*arguments, "--keep-cut").code == 0
    records = read("o.jsonl")
    assert [record["input"] for record in records] == ["Write a class."] * 2 + ["class A:"] * 2 and records[0]["id"] == 7


def test_texts_are_continued_passages(hasten: Hasten) -> None:
    write("text.txt", "def f(x):\n    return x + 1\n" * 20)
    command = ("data", "generate", "demo", "--text", "text.txt", "--count", "3", "--seq-len", "24", *ENGINE)
    assert hasten(*command, "--out", "a.jsonl").code == 0
    assert hasten(*command, "--out", "b.jsonl").code == 0
    texts = [record["text"] for record in read("a.jsonl")]
    assert len(texts) == 3 and read("a.jsonl") == read("b.jsonl")
    assert all(text[:2] in Path("text.txt").read_text() and len(text) > 20 for text in texts)


def test_a_short_template_lets_the_demo_write_examples(hasten: Hasten) -> None:
    """The demo cannot follow an instruction; one that stops after a few tokens shows the way of the texts."""
    arguments = ("data", "augment", "demo", "--seeds", "seeds.jsonl", "--count", "6", "--shots", "2", "--stop", "(", "--seed", "4")
    shown = hasten(*arguments, "--out", "o.jsonl", "--max-tokens", "24", *ENGINE)
    assert shown.code == 0, shown.err
    records, seeds = read("o.jsonl"), [record["input"] for record in read("seeds.jsonl")]
    assert 1 <= len(records) <= 6 and len({record["input"] for record in records} | set(seeds)) == len(records) + 5
    assert all(len(record["seeds"]) == 2 and record["output"] for record in records)
    hit_rate = re.search(r"\((\d+)% from the prefix cache", shown.err)
    assert hit_rate is not None and int(hit_rate[1]) > 25  # the instruction is more than a third of each prompt


def test_the_users_check_chooses_the_answer(hasten: Hasten) -> None:
    write("check.py", "def check(input, output):\n    return -len(output)\n")
    arguments = ("data", "instruct", "demo", "--prompts", "prompts.txt", "--samples", "2", "--stop", "\n", "--max-tokens", "24")
    shown = hasten(*arguments, "--check", "check.py", "--out", "o.jsonl", *ENGINE)
    assert shown.code == 0, shown.err
    records = read("o.jsonl")
    assert records and all(record["score"] == -len(record["output"]) and record["votes"] for record in records)
    write("check.py", "def check(input, output):\n    raise ValueError('mine')\n")
    shown = hasten(*arguments, "--check", "check.py", "--out", "p.jsonl", *ENGINE)
    assert shown.code == 2 and "the function check of check.py failed, because it fails: got ValueError: mine" in shown.err
    write("check.py", "def check(input, output):\n    return output < '['\n")
    assert hasten(*arguments, "--check", "check.py", "--out", "p.jsonl", *ENGINE).code == 0  # its answers were kept
    assert {record["score"] for record in read("p.jsonl")} <= {0.0, 1.0}
    shown = hasten(*arguments, "--check", "check.py", "--rule", "logprob", "--out", "q.jsonl", *ENGINE)
    assert shown.code == 2 and "one rule" in shown.err


def test_feedback_makes_pairs_of_a_students_outputs(hasten: Hasten) -> None:
    arguments = ("data", "feedback", "demo", "--examples", "outputs.jsonl", *SHORT)
    shown = hasten(*arguments, "--out", "o.jsonl")
    assert shown.code == 0, shown.err
    assert re.search(SPEED + r" \| 15 choices of labels in [\d.]+ s", shown.err)
    for record in read("o.jsonl"):
        assert 1 <= record["rejected_score"] < record["chosen_score"] <= 5 and record["chosen"] != record["rejected"]
    answering = ("data", "feedback", "demo", "--student", "demo", "--prompts", "prompts.txt", "--samples", "2", *SHORT)
    assert hasten(*answering, "--out", "a.jsonl").code == 0
    assert hasten(*answering, "--out", "b.jsonl", "--seed", "1").code == 0
    assert [record["input"] for record in read("a.jsonl")] == Path("prompts.txt").read_text().split("\n")
    assert read("a.jsonl") != read("b.jsonl")
    shown = hasten(*arguments, "--student", "demo", "--out", "c.jsonl")
    assert shown.code == 2 and "the outputs to judge are missing, or given twice" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "demo"), "--prompts and --text"),
        (("generate", "demo", "--prompts", "prompts.txt", "--text", "prompts.txt"), "--prompts and --text"),
        (("generate", "demo", "--prompts", "bad.jsonl"), "line 2 of bad.jsonl is wrong"),
        (("generate", "demo", "--prompts", "none.txt"), "none.txt cannot be read"),
        (("generate", "no-such-model", "--prompts", "prompts.txt"), "no-such-model"),
        (("generate", "demo", "--prompts", "prompts.txt", "--beam-width", "2"), "unknown option --beam-width"),
        (("augment", "demo", "--seeds", "bad.jsonl"), "line 1 of bad.jsonl is wrong"),
        (("augment", "demo", "--seeds", "seeds.jsonl", "--template", "bad.yaml"), "Did you mean 'output'"),
        (("instruct", "demo", "--prompts", "prompts.txt", "--rule", "best"), "unknown rule"),
        (("instruct", "demo", "--prompts", "prompts.txt", "--answer-pattern", "("), "no regular expression"),
        (("feedback", "demo", "--examples", "bad.jsonl"), "line 1 of bad.jsonl is wrong"),
        (("feedback", "demo"), "missing, or given twice"),
        (("feedback", "demo", "--student", "demo", "--prompts", "missing.txt"), "the file missing.txt cannot be read"),
        (("instruct", "m@http://localhost:1/v1", "--prompts", "prompts.txt", "--rule", "logprob"), "no log-probabilities"),
        (
            ("generate", "m@http://localhost:1/v1", "--prompts", "prompts.txt", "--threads", "1"),
            "of its own: got threads",
        ),
        (("generate", "m@http://localhost:1/v1", "--prompts", "prompts.txt", "--top-k", "3"), "no such sampling settings"),
        (("generate", "m@http://localhost:1/v1", "--text", "prompts.txt"), "Give --prompts instead"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(hasten: Hasten, arguments: tuple[str, ...], message: str) -> None:
    write("bad.jsonl", '{"input": "a"}\n{"inputs": "a"}\n')
    write("bad.yaml", "- name: outputs\n  text: x\n")
    shown = hasten("data", *arguments, "--out", "o.jsonl")
    assert shown.code == 2 and message in shown.err and shown.err.count("error:") == 1
    assert not any(name.startswith("o.jsonl") for name in os.listdir())


def test_a_finished_file_is_not_written_over(hasten: Hasten) -> None:
    write("o.jsonl", "mine")
    shown = hasten("data", "generate", "demo", "--prompts", "prompts.txt", "--out", "o.jsonl")
    assert shown.code == 2 and "the output file exists" in shown.err and Path("o.jsonl").read_text() == "mine"


def test_a_run_goes_on_after_ctrl_c(hasten: Hasten, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("data", "generate", "demo", "--prompts", "prompts.txt", "--n", "2", "--keep-cut", *SHORT)
    assert hasten(*command, "--out", "expected.jsonl").code == 0
    add, kept = AnswerFile.add, []

    def interrupted(self: AnswerFile, answers: list[tuple[str, Any]]) -> None:
        add(self, answers)
        kept.extend(key for key, _ in answers)
        if len(kept) == 4:  # the first batch
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(AnswerFile, "add", interrupted)
    shown = hasten(*command, "--out", "o.jsonl")
    assert shown.code == 130 and "stopped; the same command goes on" in shown.err and not Path("o.jsonl").exists()
    shown = hasten(*command, "--out", "o.jsonl")
    assert shown.code == 0 and "going on with 4 answers of an earlier run" in shown.err
    assert len(kept) == len(set(kept)) == 10 and re.search(r"^6 requests", shown.err, re.MULTILINE)
    assert Path("o.jsonl").read_text() == Path("expected.jsonl").read_text()


def test_a_teacher_behind_an_endpoint_goes_on_after_an_error(hasten: Hasten) -> None:
    fails = True

    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        if fails and len(server.asked) > 8:
            send(handler, {"error": {"message": "no credit"}}, status=400)
        else:
            send(handler, completion(asked.body["messages"][0]["content"].upper(), finish_reason="stop"))

    with serve(answer) as server:
        command = ("data", "generate", f"m@{server.url}", "--prompts", "prompts.txt", "--max-num-seqs", "1", "--out", "o.jsonl")
        shown = hasten(*command)
        assert shown.code == 2 and "no credit" in shown.err and not Path("o.jsonl").exists()
        fails = False
        shown = hasten(*command)
    assert shown.code == 0 and "going on with 8 answers of an earlier run" in shown.err
    assert [record["output"] for record in read("o.jsonl")] == [f"DEF GET_{name.upper()}(SELF):" for name in NAMES]
    assert re.search(r"^2 requests \| 84 tokens, as the endpoint counts them", shown.err, re.MULTILINE)


def test_a_killed_run_ends_as_one_that_is_not(folder: Path) -> None:
    """The run makes pairs from what a student writes first, so it has both kinds of answers and two models."""
    with Killer(folder) as killer:
        assert killer.run("expected", 0) == 0
        expected = (folder / "expected.jsonl").read_bytes()
        num_moments, generator, num_killed = int(killer.log("expected")[-1].split()[1]), random.Random(7), 0
        assert num_moments > 15 and expected
        while num_killed < repeats("data kills"):
            out, code = f"out{num_killed}", -signal.SIGKILL
            while code and num_killed < repeats("data kills"):
                code = killer.run(out, generator.randint(1, num_moments))
                num_killed += code != 0
            if code:
                assert killer.run(out, 0) == 0
            assert (folder / f"{out}.jsonl").read_bytes() == expected
            keys = [line for line in killer.log(out) if not line.startswith("end")]
            assert len(keys) == len(set(keys)) == len(killer.log("expected")) - 1  # nothing was asked twice
            assert [name for name in os.listdir(folder) if name.startswith(f"{out}.j")] == [f"{out}.jsonl"]


class Killer:
    """A program that has imported hasten, and runs each command in a child, which kills itself at a moment."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its input, which ends it
            pass

    def run(self, out: str, last: int) -> int:
        """Run the command until its end or its moment ``last``, and return its exit code."""
        arguments = ("data", "feedback", "demo", "--student", "demo", "--prompts", "prompts.txt", "--samples", "2", *SHORT)
        assert self._process.stdin is not None and self._process.stdout is not None
        message = {"last": last, "path": f"{out}.jsonl", "log": f"{out}.log", "arguments": [*arguments, "--out", f"{out}.jsonl"]}
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code

    def log(self, out: str) -> list[str]:
        file = self._folder / f"{out}.log"
        return file.read_text().splitlines() if file.exists() else []


def test_params_of_the_files_are_used(hasten: Hasten) -> None:
    write("params.yaml", "max_tokens: 3\nseed: 5\n")
    command = ("data", "generate", "demo", "--prompts", "prompts.txt", "--keep-cut", "--params", "params.yaml", *ENGINE)
    assert hasten(*command, "--out", "o.jsonl").code == 0
    assert max(record["num_tokens"] for record in read("o.jsonl")) == SamplingParams(max_tokens=3).max_tokens
