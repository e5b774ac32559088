"""``hasten train dpo``, ``reward-model`` and ``grpo``: their lines, their tables, their files, and their refusals."""

from __future__ import annotations

import json
import os
import signal

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hasten.training.preference import train as module

SHORT = ("--steps", "4", "--batch", "4", "--seq-len", "32", "--validation-fraction", "0.3", "--threads", "1")


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [{"input": f"w{i}", "chosen": f"w{20 + i}", "rejected": f"w{50 + i}"} for i in range(10, 22)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.fixture(autouse=True)
def short_evaluations(monkeypatch):
    monkeypatch.setattr(module, "MAX_EVALUATION_SEQUENCES", 4)


@pytest.mark.parametrize(("kind", "loader"), [("dpo", AutoModelForCausalLM), ("reward-model", AutoModelForSequenceClassification)])
def test_training_on_pairs_prints_accuracies_and_writes_a_checkpoint(hasten, model, pairs, tmp_path, kind, loader):
    out = tmp_path / "out"
    ran = hasten("train", kind, model, "--data", pairs, "--out", str(out), *SHORT)
    assert ran.code == 0, ran.err
    assert len([line for line in ran.err.splitlines() if line.startswith("step ") and "accuracy" in line]) == 4
    report = json.loads((out / "training.json").read_text())
    assert (report["kind"], report["steps"], report["model"]) == (kind, 4, model)
    assert "self_distill" not in hasten("train", kind, "--help").out.replace("-", "_")
    loader.from_pretrained(out)
    again = hasten("train", kind, model, "--data", pairs, "--out", str(out), *SHORT)
    assert again.code == 2 and "not an empty folder" in again.err


def test_grpo_prints_the_reward_before_and_after(hasten, model, pairs, tmp_path):
    out = tmp_path / "out"
    command = ("train", "grpo", model, "--prompts", pairs, "--reward", "compiles", "--out", str(out), *SHORT)
    ran = hasten(*command, "--group-size", "2", "--max-new-tokens", "3")
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines()]
    assert rows[0] == ["REWARD", "KL", "PER", "TOKEN", "OUTPUTS"] and [row[0] for row in rows[1:]] == ["before", "after"]
    report = json.loads((out / "training.json").read_text())
    assert rows[2][1] == f"{report['held_out_score']['reward']:.3f}" and rows[1][2] == "0.0000"
    AutoModelForCausalLM.from_pretrained(out)
    wrong = hasten(*command, "--group-size", "3")
    assert wrong.code == 2 and "batch=4, group_size=3" in wrong.err and wrong.err.count("error:") == 1


def test_the_same_command_resumes_after_ctrl_c(hasten, model, pairs, tmp_path, monkeypatch):
    command = ("train", "dpo", model, "--data", pairs, "--out", str(tmp_path / "out"), *SHORT)
    with monkeypatch.context() as patch:
        from hasten.training.callback import ConsoleCallback

        on_evaluate = ConsoleCallback.on_evaluate

        def press_ctrl_c(self, step, *rest):
            on_evaluate(self, step, *rest)
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(ConsoleCallback, "on_evaluate", press_ctrl_c)
        ran = hasten(*command)
    assert ran.code == 130 and "the same command resumes the training" in ran.err and "Traceback" not in ran.err
    other = hasten(*command, "--beta", "0.5")
    assert other.code == 2 and "beta was 0.1 and is 0.5" in other.err
    ran = hasten(*command)
    assert ran.code == 0 and "resuming after step 2 of 4" in ran.err


def test_a_reward_that_fails_is_one_line(hasten, model, pairs, tmp_path):
    (tmp_path / "mine.py").write_text("def reward(input, output):\n    raise ValueError('no reward')\n")
    ran = hasten(
        "train",
        "grpo",
        model,
        "--prompts",
        pairs,
        "--reward",
        str(tmp_path / "mine.py"),
        "--out",
        str(tmp_path / "o"),
        *SHORT,
        "--batch",
        "8",
    )
    assert ran.code == 2 and "ValueError: no reward" in ran.err and len(ran.err.splitlines()) == 1
