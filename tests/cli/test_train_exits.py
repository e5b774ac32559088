"""``hasten train exits``: its table shows agreement, and its options reach the recipe."""

from __future__ import annotations

import json

import pytest

SHORT = ("--steps", "20", "--batch", "2", "--seq-len", "64", "--texts", "8")


def test_a_training_prints_progress_and_scores_and_writes_a_checkpoint(hasten, model, text, tmp_path):
    out = tmp_path / "out"
    ran = hasten("train", "exits", model, "--data", text, "--out", str(out), *SHORT, "--layers", "2", "--layers", "1")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 20 and all("agreed" in line and "accepted" not in line for line in lines)
    table = [line.split() for line in ran.out.splitlines()]
    assert table[0][:2] == ["EXIT", "AGREES"] and [row[0] for row in table[1:]] == ["1", "2"]
    report = json.loads((out / "training.json").read_text())
    assert table[1][1] == f"{report['held_out_score']['agreement'][0]:.1%}"
    assert (report["kind"], report["layers"]) == ("exits", [2, 1])
    for rule in ("token_table:", "prompt_hash:", "softmax:", "entropy:"):
        assert rule in ran.err
    assert {"config.json", "model.safetensors", "training.json"} == {entry.name for entry in out.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "3"], "1 to 2"),
        (["--layers", "0"], "each 1 to"),
        (["--texts", "-1"], "texts=-1 (allowed: 0 to"),
        (["--layer", "1"], "--layers"),
    ],
)
def test_a_training_that_cannot_work_is_refused(hasten, model, text, tmp_path, arguments, message):
    ran = hasten("train", "exits", model, "--data", text, "--out", str(tmp_path / "out"), *SHORT, *arguments)
    assert ran.code == 2 and message in ran.err and ran.err.count("error: ") == 1
