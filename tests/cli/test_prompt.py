"""``hasten prompt``: comparisons that go on after SIGKILL, and feedback that keeps no text unless asked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import CommandOutput
from tests.prompts.conftest import MODULES

from hasten import LLM, SamplingParams
from hasten.prompts.feedback import Feedback, FeedbackStore
from hasten.prompts.function_process import FunctionProcess

Hasten = Callable[..., CommandOutput]
ENGINE = ("--threads", "1", "--kv-cache-memory", "16MiB", "--max-model-len", "256")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a task and two variants."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    Path("task.jsonl").write_text("".join(json.dumps({"input": name, "output": name}) + "\n" for name in MODULES))
    Path("plain.txt").write_text("{{ input }}\nimport")
    Path("comment.txt").write_text("# the module {{ input }}\nimport\n")
    return tmp_path


def compare(
    hasten: Hasten, *options: str, variants: tuple[str, ...] = ("plain.txt", "comment.txt"), task: str = "task.jsonl"
) -> CommandOutput:
    given = [word for variant in variants for word in ("--variant", variant)]
    return hasten("prompt", "compare", "demo", task, *given, *ENGINE, *options)


def test_the_table_and_the_json_hold_the_same_scores(hasten: Hasten) -> None:
    found = json.loads(compare(hasten, "--max-tokens", "4", "--json").out)
    table = compare(hasten, "--max-tokens", "4")
    assert [one["variant"] for one in found["variants"]] == ["comment.txt", "plain.txt"]
    best = found["variants"][0]
    with LLM("demo", threads=1, kv_cache_memory="16MiB", max_model_len=256) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=4, stop=("\n",), seed=0)
        outputs = llm.generate([f"# the module {name}\nimport" for name in MODULES], params, use_tqdm=False)
    expected = [float(output.outputs[0].text.strip() == name) for output, name in zip(outputs, MODULES, strict=True)]
    assert [item["score"] for item in best["items"]] == expected and 0 < sum(expected) < len(MODULES)
    assert best["mean"] == sum(expected) / len(MODULES) and best["prompt_seconds"] > 0
    assert (found["winner"], found["differences"][0]["is_real"], found["num_items"]) == (None, False, 10)
    assert f"{best['mean']:.4g} (" in table.out and "no difference shown between comment.txt, plain.txt" in table.out
    assert "20 results were kept from before" in table.err


@pytest.fixture
def more() -> str:
    """Make a variant that holds the output, and return a task of fifty items."""
    Path("copied.txt").write_text("import {{ input }}\nimport {{ input }}\nimport {{ input }}\nimport")
    lines = [json.dumps({"input": f"{name}{index}", "output": f"{name}{index}"}) for name in MODULES for index in range(5)]
    Path("more.jsonl").write_text("\n".join(lines))
    return "more.jsonl"


def test_a_winner_is_named(hasten: Hasten, more: str) -> None:
    found = compare(hasten, "--metric", "log_likelihood", variants=("copied.txt", "plain.txt", "comment.txt"), task=more)
    assert "winner: copied.txt" in found.out


def test_a_tournament_shows_what_it_spent(hasten: Hasten, more: str) -> None:
    arguments = ("--metric", "log_likelihood", "--tournament")
    shown = compare(hasten, *arguments, variants=("copied.txt", "plain.txt"), task=more)
    assert "winner: copied.txt" in shown.out and "worse than copied.txt" in shown.out and "sign test" in shown.err
    found = json.loads(compare(hasten, *arguments, "--json", variants=("copied.txt", "plain.txt"), task=more).out)
    assert found["winner"] == "copied.txt" and found["num_tokens"] < found["full_tokens"]
    assert {one["variant"]: one["beaten_by"] for one in found["standings"]} == {"copied.txt": None, "plain.txt": "copied.txt"}


def test_a_run_that_was_killed_goes_on(hasten: Hasten, folder: Path) -> None:
    """SIGKILL at the fifth item of the second variant: what was scored before is not scored again."""
    Path("mine.py").write_text(
        "import os, time\n"
        "def score(input, output, reference):\n"
        "    with open('calls', 'a') as calls:\n"
        "        calls.write(f'{input}\\n')\n"
        "    if os.environ.get('SLOW') and sum(1 for _ in open('calls')) == 15:\n"
        "        open('gate', 'w').write('here')\n"
        "        time.sleep(600)\n"
        "    return float(reference in output)\n"
    )
    arguments = ("--metric", "python:mine.py:score", "--max-tokens", "4", "--run", "run.jsonl")
    command = [sys.executable, "-m", "hasten", "prompt", "compare", "demo", "task.jsonl", "--variant", "plain.txt"]
    command += ["--variant", "comment.txt", *ENGINE, *arguments]
    environment = {**os.environ, "SLOW": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    os.mkfifo("gate")
    gate = os.open("gate", os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert select.select([gate], [], [], 60)[0], "the function is not called for the 15th time"
        process.kill()
    os.close(gate)
    assert process.returncode == -signal.SIGKILL
    found = compare(hasten, *arguments)
    assert found.code == 0 and "14 results were kept from before" in found.err
    assert Path("calls").read_text().splitlines() == [*MODULES, *MODULES[:5], *MODULES[4:]]
    # The same scores as those of a run that was not killed.
    kept = json.loads(compare(hasten, *arguments, "--json").out)
    fresh = json.loads(compare(hasten, *arguments[:-1], "other.jsonl", "--json").out)
    assert [one["items"] for one in kept["variants"]] == [one["items"] for one in fresh["variants"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "missing.jsonl"}, "missing.jsonl cannot be read"),
        ({"variants": ("missing.txt",)}, "missing.txt"),
        ({"variants": ("plain.txt", "plain.txt")}, "variants have the same name"),
        ({"variants": ("loop.txt",)}, "loop.txt"),
        ({"variants": ("wrong.txt",)}, "wrong.txt"),
        ({"variants": ("other.txt",)}, "line 1 of the task: .*question"),
        ({"options": ("--metric", "rouge")}, "unknown metric"),
        ({"options": ("--metric", "python:hang.py:score")}, "line 1 of the task, variant plain.txt: .* too long"),
        ({"options": ("--run", ".")}, "the file of results . cannot be opened"),
        ({"options": ("--tournament",), "variants": ("plain.txt",)}, "a tournament needs two variants"),
        ({"options": ("--max-tokens", "0")}, "max_tokens"),
    ],
)
def test_bad_input_is_one_sentence(hasten: Hasten, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str) -> None:
    monkeypatch.setattr(FunctionProcess.__init__, "__kwdefaults__", {"seconds": 0.3, "total": 9.0, "start": 9.0})
    Path("loop.txt").write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ input }}")
    Path("wrong.txt").write_text("{{ input")
    Path("other.txt").write_text("{{ question }}")
    Path("hang.py").write_text("def score(input, output, reference):\n    while True: pass\n")
    options = change.pop("options", ())
    found = compare(hasten, *options, **{"variants": ("plain.txt", "comment.txt"), **change})
    assert found.code == 2 and found.out == "" and found.err.count("error: ") == 1, found.err
    assert re.search(words, found.err.splitlines()[-1]), found.err


def test_feedback_is_recorded_listed_and_reported(hasten: Hasten) -> None:
    for opinion, variant in (("good", "plain.txt"), ("good", "plain.txt"), ("bad", "comment.txt")):
        found = hasten("prompt", "feedback", "add", opinion, "--variant", variant, "--model", "demo", "--comment", "a\x1b[2Jb")
        assert (found.code, found.out, found.err) == (0, "", "")
    listed = hasten("prompt", "feedback", "ls")
    assert [line.split()[2] for line in listed.out.splitlines()[1:]] == ["comment.txt", "plain.txt", "plain.txt"]
    assert "\x1b" not in listed.out
    (newest,) = json.loads(hasten("prompt", "feedback", "ls", "--limit", "1", "--json").out)
    assert (newest["variant"], newest["is_good"], newest["model"]) == ("comment.txt", False, "demo")
    shown = hasten("prompt", "feedback", "report").out
    assert "100.0% (34.2% to 100.0%)" in shown and "no difference shown between plain.txt, comment.txt" in shown
    report = json.loads(hasten("prompt", "feedback", "report", "--json").out)
    assert (report["winner"], [one["num_good"] for one in report["variants"]]) == (None, [2, 0])


def test_a_real_difference_has_a_winner(hasten: Hasten) -> None:
    with FeedbackStore(Path("feedback.sqlite")) as store:
        for index in range(20):
            for name, is_good in (("new", True), ("old", index % 3 == 0)):
                store.add(Feedback(variant=name, digest="0" * 64, is_good=is_good, time=1e9))
    assert "winner: new" in hasten("prompt", "feedback", "report").out


def test_texts_are_stored_only_if_asked(hasten: Hasten) -> None:
    Path("answer.txt").write_text("a private answer")
    Path("asked.txt").write_text("a private prompt")
    add = ("prompt", "feedback", "add", "good", "--variant", "plain.txt")
    assert hasten(*add, "--output", "answer.txt").code == 0
    refused = hasten(*add, "--prompt", "asked.txt")
    assert refused.code == 2 and "--keep-text" in refused.err
    (entry,) = json.loads(hasten("prompt", "feedback", "ls", "--json").out)
    assert entry["output_id"] == hashlib.sha256(b"a private answer").hexdigest()
    assert b"private" not in Path("feedback.sqlite").read_bytes()
    assert hasten(*add, "--output", "answer.txt", "--prompt", "asked.txt", "--output-id", "7", "--keep-text").code == 0
    entry, _ = json.loads(hasten("prompt", "feedback", "ls", "--json").out)
    assert (entry["output_id"], entry["output"], entry["prompt"]) == ("7", "a private answer", "a private prompt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "great", "--variant", "plain.txt"), "an opinion is one of two"),
        (("add", "good", "--variant", "missing.txt"), "missing.txt"),
        (("add", "good", "--variant", "plain.txt", "--file", "none/f.sqlite"), "cannot be made"),
        (("add", "good", "--variant", "plain.txt", "--file", "task.jsonl"), "no SQLite file"),
        (("ls",), "there is no feedback"),
        (("report",), "there is no feedback"),
        (("report", "--file", "empty"), "there is no feedback"),
        (("report", "--file", "other.sqlite"), "database of another program"),
    ],
)
def test_a_wrong_feedback_command_is_one_sentence(hasten: Hasten, arguments: tuple[str, ...], words: str) -> None:
    Path("empty").touch()
    connection = sqlite3.connect("other.sqlite")
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    found = hasten("prompt", "feedback", *arguments)
    assert found.code == 2 and words in found.err and found.err.count("\n") == 1
