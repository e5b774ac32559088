"""``hasten train``: its progress lines, its result table, its files, and its refusals."""

from __future__ import annotations

import json
import os
import signal

import pytest

from hasten.cli import train as module

SHORT = ("--steps", "20", "--batch", "2", "--seq-len", "64")


@pytest.mark.parametrize(
    ("kind", "options", "title", "rows"),
    [("medusa", ("--heads", "2"), "HEAD", 2), ("draft", ("--layers", "1", "--hidden", "32"), "DRAFT TOKEN", 4)],
)
def test_a_training_prints_progress_and_scores_and_writes_a_checkpoint(hasten, model, text, tmp_path, kind, options, title, rows):
    out = tmp_path / "out"
    ran = hasten("train", kind, model, "--data", text, "--out", str(out), *SHORT, *options)
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 20 and all("validation" in line and "accepted" in line for line in lines)
    titles, *table = [line.split() for line in ran.out.splitlines()]
    assert titles == [*title.split(), "ACCEPTANCE", "TOP", "1", "TOP", "2", "TOP", "4", "TOP", "10"]
    assert [row[0] for row in table[:-1]] == [str(number) for number in range(1, rows + 1)]
    assert table[-1][1:] == ["draft", "tokens", "accepted", "per", "chain", "on", "average"]
    report = json.loads((out / "training.json").read_text())
    assert table[0][1] == f"{report['held_out_score']['acceptance'][0]:.1%}"
    assert (report["kind"], report["steps"], report["model"]) == (kind, 20, model)
    assert {"config.json", "model.safetensors"} <= {entry.name for entry in out.iterdir()}
    assert not (out / ".resume").exists()
    again = hasten("train", kind, model, "--data", text, "--out", str(out), *SHORT, *options)
    assert again.code == 2 and "not an empty folder" in again.err


def test_the_same_command_resumes_after_ctrl_c(hasten, model, text, tmp_path, monkeypatch):
    command = ("train", "medusa", model, "--data", text, "--out", str(tmp_path / "out"), *SHORT)
    with monkeypatch.context() as patch:
        from hasten.training.callback import ConsoleCallback

        on_evaluate = ConsoleCallback.on_evaluate

        def press_ctrl_c(self, step, *rest):
            on_evaluate(self, step, *rest)
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(ConsoleCallback, "on_evaluate", press_ctrl_c)
        ran = hasten(*command)
    assert ran.code == 130 and "step 7 of 20" in ran.err and "step 8 of 20" not in ran.err
    assert "the same command resumes the training" in ran.err and "Traceback" not in ran.err
    other = hasten(*command, "--lr", "0.5")
    assert other.code == 2 and "lr was 0.001 and is 0.5" in other.err
    ran = hasten(*command)
    assert ran.code == 0 and "resuming after step 7 of 20" in ran.err
    assert [line.split()[1] for line in ran.err.splitlines() if line.startswith("step ")] == [str(n) for n in range(8, 21)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing.txt"], "nothing.txt cannot be read"),
        (["--data", "empty.txt"], "empty.txt is empty"),
        (["--data", "short.txt", "--seq-len", "200"], "at least 600 tokens"),
        (["--data", "short.txt", "--seq-len", "1000"], "up to 256"),
        (["--data", "short.txt", "--seq-len", "8"], "seq_len=8 (allowed: 32 to 1048576)"),
        (["--data", "text.txt", "--steps", "5", "--minutes", "1"], "minutes=1.0 (allowed: None with steps)"),
        (
            ["--data", "text.txt", "--steps", "0", "--batch", "0"],
            "steps=0 (allowed: None or 1 to 1000000000); batch=0 (allowed: 1 to 65536)",
        ),
        (["--data", "text.txt", "--lr", "fast"], "--lr has the wrong form"),
        (["--data", "text.txt", "--heads", "99"], "heads=99 (allowed: 1 to 16)"),
        (["--data", "text.txt", "--haeds", "2"], "Did you mean '--heads'"),
        (["--data", "text.txt", "--window", "64"], "renamed to --seq-len"),
        (["--data", "text.txt", "--held-out", "0.1"], "renamed to --validation-fraction"),
        (["--data", "text.txt", "--generate", "9"], "renamed to --self-distill"),
        (["--data", "text.txt", "--vocabulary", "own"], "renamed to --lm-head"),
        (["--data", "text.txt", "--out", "text.txt"], "not an empty folder"),
        (["--data", "text.txt", "--out", "no-tokenizer"], "no tokenizer"),
    ],
)
def test_a_training_that_cannot_work_is_refused(hasten, model, text, tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("w10 w11 w12")
    name = str(tiny("qwen2-tied")) if "no-tokenizer" in arguments else model
    ran = hasten("train", "medusa", name, "--seq-len", "64", "--out", "out", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err and ran.err.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused(hasten, model, text, tmp_path):
    import shutil

    folder = tmp_path / "quantised"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    ran = hasten("train", "medusa", str(folder), "--data", text, "--out", str(tmp_path / "out"), *SHORT)
    assert ran.code == 2 and "gptq" in ran.err and "floating point" in ran.err


def test_every_option_is_a_field_with_help():
    """``KINDS`` names every field of the recipes."""
    import dataclasses

    for kind in module.KINDS.values():
        assert {field.name for field in dataclasses.fields(kind.recipe)} == set(kind.help)
        assert not set(kind.help) & set(module.TRAINING.help)
    from hasten.training.options import TrainOptions

    assert {field.name for field in dataclasses.fields(TrainOptions)} == set(module.TRAINING.help)
