"""``hasten prune`` writes a checkpoint, measures it, and leaves nothing half-written."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

SHORT = ("--samples", "4", "--seq-len", "64", "--num-tokens", "300")


def cells(table: str, row: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(row))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_the_demo_is_pruned_recovers_and_is_measured(hasten, tmp_path):
    (tmp_path / "text.txt").write_text("def add(a, b):\n    return a + b\n" * 400)
    out = tmp_path / "small"
    options = ("--parts", "neurons", "--target-params", "7500000", "--steps", "2", "--recover-steps", "2", "--recover-batch", "1")
    text = ("--text", str(tmp_path / "text.txt"))
    ran = hasten("prune", "demo", *options, "--out", str(out), *SHORT, *text)
    assert ran.code == 0, ran.err
    assert "neurons per layer stay" in ran.err and f"written to {out}" in ran.err
    assert "recovery on the calibration text that ships with hasten, which is small" in ran.err
    assert ran.err.count("nats from the unpruned model") == 2
    before, after = (int(cell.split()[0].replace(",", "")) for cell in cells(ran.out, "parameters"))
    assert before == 8_392_960 and after <= 7_500_000
    divergence = float(cells(ran.out, "held-out text: mean KL")[1].split()[0])
    assert 0.001 < divergence < 2
    assert cells(ran.out, "text.txt: mean KL")[0] == "0" and cells(ran.out, "text.txt: perplexity")
    assert all(float(cells(ran.out, f"tokens/s, batch {batch}")[1].split()[0]) > 0 for batch in (1, 8))
    card = (out / "README.md").read_text()
    assert "| target params | 7500000 |" in card and f"| parameters | 8,392,960 | {after:,} |" in card
    assert "| perplexity, text.txt |" in card and "tokens per second, batch 8" in card and "not measured" not in card
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["small", "text.txt"]
    evaluated = hasten("eval", str(out), "--against", "demo", "--num-tokens", "300")
    assert evaluated.code == 0 and f"{divergence:.3g}"[:4] in evaluated.out
    again = hasten("prune", "demo", "--ratio", "0.1", "--out", str(out), *SHORT)
    assert again.code == 2 and "not an empty folder" in again.err


def test_masks_say_that_they_bring_no_speed(hasten, tmp_path):
    command = ("prune", "demo", "--method", "magnitude", "--ratio", "0.5", "--pattern", "2:4", "--out", str(tmp_path / "out"))
    ran = hasten(*command, *SHORT)
    assert ran.code == 0, ran.err
    assert "Zeros bring no speed by themselves" in ran.err and "(50.0%)" in ran.err
    assert cells(ran.out, "parameters") == ["8,392,960", "8,392,960 (100.0%)"]
    assert 0.05 < float(cells(ran.out, "held-out text: mean KL")[1].split()[0]) < 5


def test_ctrl_c_leaves_no_result_and_the_run_resumes(hasten, tmp_path, monkeypatch):
    from hasten.training.distill.distill_task import DistillTask

    command = ("prune", "demo", "--ratio", "0.2", "--recover-steps", "4", "--recover-batch", "1", "--out", str(tmp_path / "out"))
    loss, calls = DistillTask.loss, []

    def press_ctrl_c(self, batch):
        calls.append(batch)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTask, "loss", press_ctrl_c)
        ran = hasten(*command, *SHORT)
    assert ran.code == 130 and "--resume continues" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "out").exists() and len(calls) == 2
    refused = hasten(*command, *SHORT)
    assert refused.code == 2 and "Add --resume" in refused.err
    ran = hasten(*command, *SHORT, "--resume")
    assert ran.code == 0 and "resuming after step 2 of 4" in ran.err and (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of ratio, target_params and target_latency"),
        (["--ratio", "0.5", "--target-params", "100"], "one of ratio, target_params and target_latency"),
        (["--ratio", "1"], "ratio=1.0 (allowed: None or 0 to 0.99)"),
        (["--ratio", "0.5", "--method", "wnada"], "Did you mean 'wanda'"),
        (["--ratio", "0.5", "--parts", "head"], "heads, neurons, width, layers"),
        (["--ratio", "0.5", "--parts", "heads", "--parts", "heads"], "different parts"),
        (["--ratio", "0.5", "--pattern", "2:4"], "2:4 with ratio=0.5 and one of magnitude, wanda, sparsegpt"),
        (["--ratio", "0.4", "--pattern", "2:4", "--method", "wanda"], "2:4 with ratio=0.5"),
        (["--target-params", "100", "--method", "wanda"], "Give a ratio"),
        (["--ratio", "0.5", "--method", "wanda", "--recover-steps", "9"], "no recovery with one of magnitude"),
        (["--ratio", "0.5", "--steps", "2"], "1 without recovery"),
        (["--ratio", "0.5", "--recover-steps", "9", "--recover-minutes", "1"], "None with recover_steps"),
        (
            ["--ratio", "0.5", "--recover-steps", "2", "--steps", "3"],
            "recover_steps=2 (allowed: at least one per round, so from 3)",
        ),
        (["--ratio", "0.5", "--method", "wanda", "--parts", "layers"], "parts=('layers',) (allowed: the default with one of magn"),
        (["--ratio", "0.5", "--layer-score", "perplexity"], "influence, the default, without the part layers"),
        (["--ratio", "0.5", "--layer-score", "perplexity", "--parts", "layers", "--method", "random"], "with the method random"),
        (["--ratio", "0.5", "--recover-lr", "0.1"], "recover_lr=0.1 (allowed: 0.0003, the default, without recovery)"),
        (["--ratio", "0.5", "--recover-batch", "2"], "recover_batch=2 (allowed: 8, the default, without recovery)"),
        (["--ratio", "0.5", "--data", "file.txt"], "no effect without recovery"),
        (["--ratio", "0.5", "--recover-steps", "2", "--data", "nothing.txt"], "nothing.txt cannot be read"),
        (["--ratio", "0.5", "--recover-steps", "2", "--data", "file.txt"], "too short"),
        (["--ratio", "0.5", "--calibration", "empty.txt"], "empty.txt is empty"),
        (["--ratio", "0.5", "--method", "magnitude", "--calibration", "file.txt"], "no effect with the method magnitude"),
        (["--ratio", "0.5", "--method", "weight", "--calibration", "file.txt"], "no effect with the method weight"),
        (["--ratio", "0.5", "--seq-len", "5000"], "up to 4,096"),
        (["--target-params", "8392960"], "to below 8,392,960"),
        (["--target-params", "10"], "does not lead to target_params"),
        (["--ratio", "0.5", "--out", "file.txt"], "not an empty folder"),
        (["--ratio", "0.5", "--text", "nothing.txt"], "nothing.txt cannot be read"),
        (["--ratio", "0.5", "--num-tokens", "0"], "from 1 token"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(hasten, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "file.txt").write_text("text")
    ran = hasten("prune", "demo", "--out", "out", "--samples", "2", *arguments)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert message in ran.err and ran.err.count("error: ") == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty.txt", "file.txt"]
