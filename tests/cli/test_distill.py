"""``hasten distill`` writes a student, measures it against its teacher, and resumes after Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from hasten.quality.documents import CALIBRATION

SHORT = ("--steps", "2", "--batch", "2", "--seq-len", "64", "--num-tokens", "130", "--threads", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    file.write_text("".join(CALIBRATION.read_text().splitlines(keepends=True)[:8]))
    return file


def cells(table: str, row: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(row))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_a_student_of_the_demo_is_trained_and_measured(hasten, data, tmp_path):
    out = tmp_path / "small"
    ran = hasten("distill", "demo", "--student-size", "layers=1,hidden=64", "--data", str(data), "--out", str(out), *SHORT)
    assert ran.code == 0, ran.err
    assert "step 2 of 2: loss" in ran.err and "outside the set: loss" in ran.err and f"written to {out}" in ran.err
    assert "curves.png is not drawn without matplotlib" in ran.err or (out / "curves.png").is_file()
    for row in ("inside the set: mean KL", "outside the set: mean KL", "held-out text: mean KL"):
        assert cells(ran.out, row)[0] == "0" and float(cells(ran.out, row)[1].split()[0]) > 0.1
    assert (
        cells(ran.out, "parameters")[0] == "8,392,960" and int(cells(ran.out, "parameters")[1].split()[0].replace(",", "")) < 10**6
    )
    assert all(float(cells(ran.out, f"tokens/s, batch {batch}")[1].split()[0]) > 0 for batch in (1, 8))
    card = (out / "README.md").read_text()
    assert "not measured" not in card and "| student | random weights, 1 layers of hidden size 64 |" in card
    report = json.loads((out / "training.json").read_text())
    assert (report["teacher"], report["steps"], report["loss"]) == ("demo", 2, "forward-kl")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["small"]
    assert hasten("generate", str(out), "The", "--max-tokens", "2", "--kv-cache-memory", "16MiB").code == 0


def test_ctrl_c_leaves_no_result_and_the_same_command_resumes(hasten, model, text, tmp_path, monkeypatch):
    from hasten.training.distill.distill_task import DistillTask

    command = ("distill", model, "--student-layers", "0", "--data", text, "--out", str(tmp_path / "out"), *SHORT)
    loss, calls = DistillTask.loss, []

    def press_ctrl_c(self, batch):
        calls.append(batch)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTask, "loss", press_ctrl_c)
        ran = hasten(*command)
    assert ran.code == 130 and "the same command resumes" in ran.err and "Traceback" not in ran.err
    assert len(calls) == 1 and not (tmp_path / "out").exists()
    ran = hasten(*command)
    assert ran.code == 0 and "resuming after step 1 of 2" in ran.err, ran.err
    assert (tmp_path / "out" / "config.json").is_file()


def test_ctrl_c_while_files_are_written_leaves_out_the_measurement(hasten, model, text, tmp_path, monkeypatch):
    from hasten.compress.distill import run

    write_curves = run.write_curves

    def press_ctrl_c(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return write_curves(*arguments)

    monkeypatch.setattr(run, "write_curves", press_ctrl_c)
    ran = hasten("distill", model, "--student-layers", "0", "--data", text, "--out", str(tmp_path / "out"), *SHORT)
    assert (ran.code, ran.out) == (130, "") and "stopped before it was measured" in ran.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "text.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one option says what the student is: got none; allowed: one of --student, --student-config"),
        (["--student", "demo", "--student-layers", "0"], "got --student, --student-layers"),
        (["--student-layers", "0,9"], "not layers of the teacher: got '0,9'; allowed: ascending numbers from 0 to 7"),
        (["--student-size", "hidden=64"], "--student-size has the wrong form: got 'hidden=64'"),
        (["--student-size", "layers=2,layers=3"], "allowed: layers=N, or layers=N,hidden=N"),
        (["--student-size", "layers=-2"], "has the wrong form"),
        (["--student-size", "layers=2,width=64"], "has the wrong form"),
        (["--student-size", "layers=2,hidden=63"], "multiples of 64"),
        (["--student-size", "layers=" + "9" * 5000], "has the wrong form"),
        (["--student-config", "nowhere.json"], "nowhere.json cannot be read as JSON"),
        (["--student", "./nowhere"], "there is no such model folder"),
        (["--student-layers", "0", "--loss", "kl"], "loss='kl'"),
        (["--student-layers", "0", "--loss", "sft", "--on-policy", "0.5"], "on_policy=0.5"),
        (["--student-layers", "0", "--device", "tpu"], "unknown device"),
        (["--student-layers", "0", "--seq-len", "5000"], "exceeds the models' context"),
        (["--student-layers", "0", "--num-tokens", "0"], "--num-tokens is out of range"),
        (["--student-layers", "0", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--student-layers", "0", "--replay", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--student-layers", "0", "--replay-share", "0.5"], "--replay-share has no effect without --replay"),
    ],
)
def test_wrong_options_are_one_sentence(hasten, data, tmp_path, arguments, message):
    ran = hasten("distill", "demo", "--data", str(data), "--out", str(tmp_path / "out"), *arguments)
    assert ran.code == 2 and message in ran.err, ran.err
    assert ran.err.count("\n") == 1 and list(tmp_path.iterdir()) == []
