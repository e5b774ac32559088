"""``hasten prompt compare``: its scores, its winner, and runs that go on after SIGKILL."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import CommandOutput
from tests.prompts.conftest import MODULES

from hasten import LLM, SamplingParams
from hasten.quality.function_process import FunctionProcess

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
    monkeypatch.setattr(FunctionProcess.__init__, "__kwdefaults__", {"seconds": 0.3, "total": 9.0, "start": 9.0, "max_bytes": None})
    Path("loop.txt").write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ input }}")
    Path("wrong.txt").write_text("{{ input")
    Path("other.txt").write_text("{{ question }}")
    Path("hang.py").write_text("def score(input, output, reference):\n    while True: pass\n")
    options = change.pop("options", ())
    found = compare(hasten, *options, **{"variants": ("plain.txt", "comment.txt"), **change})
    assert found.code == 2 and found.out == "" and found.err.count("error: ") == 1, found.err
    assert re.search(words, found.err.splitlines()[-1]), found.err
