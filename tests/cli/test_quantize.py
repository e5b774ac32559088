"""``hasten quantize`` writes a checkpoint, measures it, and leaves nothing half-written."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from hasten.checkpoints.reader import Checkpoint

SHORT = ("--samples", "4", "--seq-len", "64", "--num-tokens", "600")


def cells(table: str, row: str) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(row))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_the_demo_is_quantised_and_measured(hasten, tmp_path):
    out = tmp_path / "small"
    ran = hasten("quantize", "demo", "--method", "gptq", "--set", "damping=0.02", "--out", str(out), *SHORT)
    assert ran.code == 0, ran.err
    assert f"written to {out}" in ran.err
    assert cells(ran.out, "weights")[0] == "16.8 MB" and cells(ran.out, "weights")[1].startswith("7.4 MB (44.4%)")
    divergence = float(cells(ran.out, "held-out text: mean KL")[1].split()[0])
    assert 0.005 < divergence < 0.2
    assert all(float(cells(ran.out, f"tokens/s, batch {batch}")[1].split()[0]) > 0 for batch in (1, 8))
    assert cells(ran.out, "parameters")[1] == f"{cells(ran.out, 'parameters')[0]} (100.0%)"
    card = (out / "README.md").read_text()
    assert "| damping | 0.02 |" in card and "not measured" not in card
    assert {matrix.spec.bits for matrix in Checkpoint.open(out).matrices.values()} == {4}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["small"]
    evaluated = hasten("eval", str(out), "--against", "demo", "--num-tokens", "600")
    assert evaluated.code == 0 and f"{divergence:.3g}"[:4] in evaluated.out
    again = hasten("quantize", "demo", "--out", str(out), *SHORT)
    assert again.code == 2 and "not an empty folder" in again.err


def test_ctrl_c_leaves_no_result_and_the_run_resumes(hasten, tmp_path, monkeypatch):
    from hasten.compress.quantize import quantize as lifecycle

    command = ("quantize", "demo", "--method", "gptq", "--out", str(tmp_path / "out"), *SHORT)
    quantize_layer, calls = lifecycle.quantize_layer, []

    def press_ctrl_c(*arguments):
        calls.append(arguments[1].index)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return quantize_layer(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "quantize_layer", press_ctrl_c)
        ran = hasten(*command)
    assert ran.code == 130 and "--resume continues" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "out").exists() and calls == [0, 1, 2]
    refused = hasten(*command)
    assert refused.code == 2 and "Add --resume" in refused.err
    ran = hasten(*command, "--resume")
    assert ran.code == 0 and (tmp_path / "out" / "config.json").is_file()


def test_a_cast_is_measured_too(hasten, tmp_path):
    ran = hasten(
        "quantize", "demo", "--method", "cast", "--dtype", "float16", "--out", str(tmp_path / "half"), "--num-tokens", "600"
    )
    assert ran.code == 0, ran.err
    assert float(cells(ran.out, "held-out text: mean KL")[1].split()[0]) < 1e-3
    assert '"dtype": "float16"' in (tmp_path / "half" / "config.json").read_text()
    assert "| dtype | float16 |" in (tmp_path / "half" / "README.md").read_text()


def test_ctrl_c_stops_a_cast(hasten, tmp_path, monkeypatch):
    from hasten.compress import cast

    read, presses = cast._Cast._read, []

    def press_ctrl_c(self, name):
        if not presses:
            presses.append(name)
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, name)

    monkeypatch.setattr(cast._Cast, "_read", press_ctrl_c)
    ran = hasten("quantize", "demo", "--method", "cast", "--out", str(tmp_path / "out"))
    assert (ran.code, ran.err) == (130, "stopped\n") and list(tmp_path.iterdir()) == []


def test_ctrl_c_while_files_are_put_together_leaves_out_the_measurement(hasten, tmp_path, monkeypatch):
    from hasten.compress import merge_parts

    merge_shards = merge_parts.merge_shards

    def press_ctrl_c(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        merge_shards(*arguments)

    monkeypatch.setattr(merge_parts, "merge_shards", press_ctrl_c)
    ran = hasten("quantize", "demo", "--method", "rtn", "--out", str(tmp_path / "out"))
    assert (ran.code, ran.out) == (130, "") and "stopped before it was measured" in ran.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_model_without_a_tokenizer_is_written_and_its_speed_measured(hasten, tiny, tmp_path):
    ran = hasten("quantize", str(tiny("llama-gqa")), "--method", "rtn", "--group-size", "32", "--out", str(tmp_path / "out"))
    assert ran.code == 0, ran.err
    assert "not everything was measured" in ran.err and "tokenizer" in ran.err
    assert all(float(cell.split()[0]) > 0 for batch in (1, 8) for cell in cells(ran.out, f"tokens/s, batch {batch}"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "gtpq"], "Did you mean 'gptq'"),
        (["--format", "ggml"], "allowed: compressed-tensors, gptq, awq, fp8"),
        (["--bits", "16"], "bits=16 (allowed: None or 2 to 8)"),
        (["--group-size", "0"], "group_size=0"),
        (["--group-size", "100"], "model.layers.0.self_attn.q_proj"),
        (["--set", "dampign=0.1"], "Did you mean 'damping'"),
        (["--set", "damping=much"], "--set damping has the wrong form"),
        (["--method", "rtn", "--set", "damping=0.1"], "no effect"),
        (["--calibration", "nothing.txt"], "nothing.txt cannot be read"),
        (["--calibration", "empty.txt"], "empty.txt is empty"),
        (["--method", "rtn", "--calibration", "file.txt"], "--calibration has no effect with the method rtn"),
        (["--seq-len", "5000"], "up to 4,096"),
        (["--method", "auto"], "max_kl"),
        (["--max-kl", "0.01"], "auto"),
        (["--method", "auto", "--target-bytes", "much"], "target_bytes is not an amount of memory"),
        (["--method", "auto", "--target-bytes", "400"], "target_bytes"),
        (["--dtype", "float16"], "cast"),
        (["--method", "fp8", "--group-size", "64"], "FP8 has 8 bits"),
        (["--out", "file.txt"], "not an empty folder"),
        (["--text", "nothing.txt"], "nothing.txt cannot be read"),
        (["--num-tokens", "0"], "from 1 token"),
        (["--percentile", "99"], "clip percentile"),
        (["--method", "cast", "--format", "gptq"], "with the method cast"),
        (["--method", "cast", "--ignore", "lm_head"], "with the method cast"),
        (["--method", "cast", "--set", "damping=0.1"], "the method cast has no options"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(hasten, tmp_path: Path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "file.txt").write_text("text")
    ran = hasten("quantize", "demo", "--out", "out", "--samples", "2", *arguments)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert message in ran.err and ran.err.count("error: ") == 1
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("out.partial")) == [
        "empty.txt",
        "file.txt",
    ]


def test_the_help_names_every_option_of_a_method(hasten):
    import dataclasses

    from hasten.compress.quantize.recipe import method_class, rounding_names, transform_names

    text = " ".join(hasten("quantize", "--help").out.split())
    for name in (*rounding_names(), *transform_names()):
        assert name in text
        assert all(field.name in text for field in dataclasses.fields(method_class(name)))
