"""``hasten prompt optimize``: its table, its files, its refusals, and runs that go on after Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from tests.cli.conftest import CommandOutput
from tests.prompts.getter_task import getter_task

from hasten.cli.method_options import HELP, METHOD, MethodOptions
from hasten.cli.options import option_type_of
from hasten.prompts.optimizer import find_optimizer, optimizer_names
from hasten.prompts.run_file import RunFile
from hasten.prompts.template_file import read_templates
from hasten.quality.function_process import FunctionProcess

Hasten = Callable[..., CommandOutput]
ENGINE = ("--threads", "1", "--kv-cache-memory", "16MiB", "--max-model-len", "256", "--max-tokens", "8")
METHOD_ARGUMENTS = ("--method", "demonstrations", "--shots", "2", "--num-candidates", "2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a task."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    getter_task(Path("task.jsonl"), 24)
    return tmp_path


def optimize(hasten: Hasten, *options: str, out: str = "out", method: tuple[str, ...] = METHOD_ARGUMENTS) -> CommandOutput:
    return hasten("prompt", "optimize", "demo", "task.jsonl", *method, "--out", out, *ENGINE, *options)


def test_the_table_and_the_json_hold_the_same_figures(hasten: Hasten) -> None:
    shown = optimize(hasten)
    assert shown.code == 0, shown.err
    found = json.loads(optimize(hasten, "--json").out)
    assert found == json.loads(Path("out/report.json").read_text())
    titles, initial, best, difference, usage = shown.out.splitlines()
    assert re.split(r"  +", titles) == ["PROMPT", "VALIDATION (95 %)", "HELD-OUT (95 %)", "PROMPT TOKENS", "PROMPT SECONDS"]
    for line, figures in ((initial, found["initial"]), (best, found["best"])):
        assert f"  {figures['held_out']:.4g} (" in line and f"{figures['prompt_tokens']:.1f} " in line
    assert f"held-out difference: {found['difference']:+.4g} (" in difference
    assert difference.endswith("it is real" if found["is_real"] else "no difference is shown")
    assert usage == "use it with: hasten generate demo --template out/prompt.yaml --var input=... --temperature 0 --max-tokens 8"
    assert "12 train, 6 validation, 6 held-out items; exact_match; demonstrations" in shown.err
    assert f"{found['optimization_tokens']:,} tokens for the optimisation" in shown.err
    assert "before; choose" not in shown.err
    assert "were read once before; choose among those runs by validation" in optimize(hasten, out="again").err


def test_the_prompt_is_a_template_for_generate(hasten: Hasten) -> None:
    optimize(hasten)
    (template,) = read_templates(Path("out/prompt.yaml"))
    prompt, settings = template.render({"input": "self.x = x"}), (*ENGINE, "--temperature", "0")
    ran = hasten("generate", "demo", "--template", "out/prompt.yaml", "--var", "input=self.x = x", *settings)
    plain = hasten("generate", "demo", prompt, *settings)
    assert ran.code == 0 and ran.out == plain.out, ran.err
    missing = hasten("generate", "demo", "--template", "missing.yaml", "--var", "input=x")
    assert missing.code == 2 and "missing.yaml" in missing.err


def test_a_prompt_of_a_chat_is_shown_as_a_message(hasten: Hasten) -> None:
    words = shlex.split(optimize(hasten, "--chat").out.splitlines()[-1].removeprefix("use it as a user's message: "))
    ran = hasten(*[word.replace("input=...", "input=self.x = x") for word in words[1:]])
    (template,) = read_templates(Path("out/prompt.yaml"))
    assert ran.code == 0 and template.render({"input": "self.x = x"}) in ran.out, ran.err


def test_an_initial_template_and_other_fractions(hasten: Hasten) -> None:
    Path("mine.txt").write_text("{{ input }} ->")
    ran = optimize(hasten, "--template", "mine.txt", "--fractions", "0.25,0.25,0.5", "--seed", "3", "--json")
    found = json.loads(ran.out)
    assert (found["num_train"], found["num_validation"], found["num_held_out"]) == (6, 6, 12)
    (template,) = read_templates(Path("out/prompt.yaml"))
    assert template.text.endswith("{{ input }} ->")


def test_the_same_command_goes_on_after_ctrl_c(hasten: Hasten, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(optimize(hasten, "--json", out="expected").out)
    with monkeypatch.context() as patch:
        add, added = RunFile.add, list[str]()

        def press_ctrl_c(self: RunFile, key: str, result: Any) -> None:
            add(self, key, result)
            added.append(key)
            if len(added) == 9:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(RunFile, "add", press_ctrl_c)
        stopped = optimize(hasten)
    assert (stopped.code, stopped.out) == (130, "") and "stopped; the same command goes on" in stopped.err
    other = optimize(hasten, "--seed", "1")
    assert other.code == 2 and "seed was 0 and is 1" in other.err
    with monkeypatch.context() as patch:
        patch.setattr(RunFile, "add", lambda self, key, result: (added.append(key), add(self, key, result)))
        found = json.loads(optimize(hasten, "--json").out)
    assert len(added) == len(set(added)), "a kept result was computed again"
    for report in (expected, found):
        report["initial"]["prompt_seconds"] = report["best"]["prompt_seconds"] = report["num_earlier_reads"] = 0
    assert found == expected


def write_wrong_files() -> None:
    Path("loop.txt").write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ input }}")
    Path("other.txt").write_text("{{ question }}")
    Path("columns.jsonl").write_text('{"input": "a", "outptu": "b"}\n')
    Path("few.jsonl").write_text('{"input": "a", "output": "b"}\n')
    Path("hang.py").write_text("def score(input, output, reference):\n    while True: pass\n")
    Path("raise.py").write_text("def score(input, output, reference):\n    return 1 / 0\n")
    Path("text.py").write_text("def score(input, output, reference):\n    return 'good'\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "dspy"), "unknown method: got 'dspy'.*demonstrations"),
        (("--fractions", "a,b"), "--fractions has the wrong form"),
        (("--fractions", "0.5,0.5"), "the fractions of the split are wrong"),
        (("--fractions", "0.5,0.4,0.2"), "the fractions of the split are wrong"),
        (("--fractions", "0.5,0.5,0"), "needs validation items to choose by and held-out items"),
        (("--steps", "9"), "--steps has no meaning for the method demonstrations: allowed: --shots, --num-candidates"),
        (("--shots", "0"), r"shots=0 \(allowed: 1 to 1024\)"),
        (("--shots", "many"), "--shots has the wrong form"),
        (("--shots", "13"), "too few train items to show: got 12 train items and shots=13"),
        (("--template", "missing.txt"), "missing.txt"),
        (("--template", "loop.txt"), "loop"),
        (("--template", "other.txt"), "line 1 of the task: .*question"),
        (("--metric", "rouge"), "unknown metric"),
        (("--metric", "python:hang.py:score"), "line .* of the task, variant .*: .* too long"),
        (("--metric", "python:raise.py:score"), "line .* of the task, variant .*: .* fails"),
        (("--metric", "python:text.py:score"), "line .* of the task, variant .*: .* finite number"),
        (("--out", "task.jsonl"), "the output path is no folder"),
        (("--out", "."), "not an empty folder"),
        (("--max-tokens", "0"), "max_tokens"),
        (("--threads", "0"), "threads"),
    ],
)
def test_bad_input_is_one_sentence(hasten: Hasten, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str) -> None:
    monkeypatch.setattr(FunctionProcess.__init__, "__kwdefaults__", {"seconds": 0.3, "total": 9.0, "start": 9.0, "max_bytes": None})
    write_wrong_files()
    found = optimize(hasten, *options)
    assert found.code == 2 and found.out == "" and found.err.count("error: ") == 1, found.err
    assert re.search(words, found.err.splitlines()[-1]), found.err


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("missing.jsonl", "missing.jsonl cannot be read"),
        ("columns.jsonl", 'line 1 of columns.jsonl: "output" is missing, and .outptu. has no meaning'),
        ("few.jsonl", "few.jsonl has too few items"),
    ],
)
def test_a_wrong_task_is_one_sentence_before_the_model_loads(hasten: Hasten, task: str, words: str) -> None:
    write_wrong_files()
    found = hasten("prompt", "optimize", "no-such-model", task, "--method", "demonstrations", "--out", "out")
    assert found.code == 2 and found.err.count("error: ") == 1 and re.search(words, found.err), found.err
    assert not Path("out").exists()


def test_every_option_of_a_method_has_a_flag_of_the_same_type() -> None:
    assert {field.name for field in dataclasses.fields(MethodOptions)} == set(HELP)
    hints = get_type_hints(MethodOptions)
    for method in optimizer_names():
        source = find_optimizer(method).OPTIONS
        for name, hint in get_type_hints(source).items():
            assert name in HELP, f"the option {name} of {method} has no flag"
            assert option_type_of(hint).metavar == option_type_of(hints[name]).metavar, f"{method}.{name}"
            assert re.search(rf"\b{method}\b", HELP[name].split(":")[0]), f"the help of {name} does not name {method}"
        assert source() == source()
    assert all(type(None) in get_args(hint) for hint in hints.values()) and METHOD.source is MethodOptions
