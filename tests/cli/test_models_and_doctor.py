"""``ls``, ``rm``, ``pull`` and ``doctor``, without a network."""

import json
from pathlib import Path

import pytest

from hasten.checkpoints import hub
from hasten.ops.cpu.cpu import find_cpu

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--someone--a-model-with-quite-a-long-name-to-print-in-a-table" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(CONFIG)
    (snapshot / "model.safetensors").write_bytes(bytes(2_000_000))
    return snapshot


CONFIG = '{"quantization_config": {"quant_method": "gptq", "bits": 4}}'
NAME = "someone/a-model-with-quite-a-long-name-to-print-in-a-table"


def test_ls_lists_shipped_and_cached_models(hasten, cache):
    rows = json.loads(hasten("ls", "--json").out)
    assert {row["name"]: row["source"] for row in rows} == dict.fromkeys(hub.SHIPPED, "shipped") | {NAME: "cache"}
    line = next(line for line in hasten("ls").out.splitlines() if line.startswith("someone"))
    assert line.split()[:7] == [NAME, "2.0", "MB", "GPTQ", "int4", "cache", COMMIT[:8]]
    schemes = {row["name"]: row["scheme"] for row in rows}
    assert schemes == dict.fromkeys(hub.SHIPPED, "bf16") | {NAME: "GPTQ int4"}


def test_a_long_list_shows_what_a_model_takes_before_it_is_loaded(hasten, cache):
    """The cached model has no tensors that can be read."""
    rows = {row["name"]: row for row in json.loads(hasten("ls", "--long", "--json").out)}
    assert [rows[NAME][name] for name in ("bits_per_weight", "weight_bytes", "kernels")] == [None] * 3
    report = json.loads(hasten("doctor", "demo", "--json").out)
    assert {rows["demo"][name] == report[name] for name in ("bits_per_weight", "weight_bytes", "kernels")} == {True}
    lines = hasten("ls", "-l").out.splitlines()
    demo = next(line for line in lines if line.startswith("demo "))
    assert f"{report['bits_per_weight']:.1f}  {report['weight_bytes'] / 1e6:.1f} MB" in demo and demo.endswith(report["kernels"])
    assert next(line for line in lines if line.startswith("someone")).split()[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize("config", ["{", "[]", None])
def test_ls_lists_models_with_a_broken_configuration(hasten, cache, config):
    (cache / "config.json").write_text(config) if config else (cache / "config.json").unlink()
    (row,) = (row for row in json.loads(hasten("ls", "--json").out) if row["name"] == NAME)
    assert row["scheme"] == "-"


def test_pull_prints_the_folder_of_a_cached_or_shipped_model(hasten, cache):
    assert hasten("pull", NAME).out == f"{cache}\n"
    assert hasten("pull", "--model", "demo").out == f"{hub.SHIPPED['demo']}\n"


def test_rm_removes_a_cached_model(hasten, cache):
    ran = hasten("rm", NAME)
    assert (ran.code, ran.out) == (0, "")
    assert "2.0 MB freed" in ran.err
    assert not cache.exists()
    assert hasten("rm", NAME).code == 2


def test_doctor_says_why_drafts_are_off_by_default(hasten, cache, monkeypatch):
    monkeypatch.setenv("HASTEN_CPU_ISA", "none")
    assert "off by default for float32, bfloat16, float16: PyTorch's matrix products" in hasten("doctor").out


def test_doctor_reports_the_kernels_and_the_reason(hasten, cache):
    import torch

    report = json.loads(hasten("doctor", "--json").out)
    native = find_cpu()
    assert report["kernels"]["backend"] == ("torch" if isinstance(native, str) else "native")
    assert (native if isinstance(native, str) else f"kernels for {native.isa}") in report["kernels"]["why"]
    assert (report["speculation_off_because"]["float32"] is None) == (not isinstance(native, str))
    assert report["versions"]["torch"] == torch.__version__
    assert report["models"] == {
        "shipped": [*hub.SHIPPED],
        "cache": str(cache.parents[2]),
        "cached": 1,
        "cached_bytes": 2_000_000 + len(CONFIG),
        "offline": True,
    }
    assert len(report["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert report["hardware"]["usable_cores"] >= 1
    text = hasten("doctor").out
    assert [
        word for word in ("cpu", "memory", report["kernels"]["why"], torch.__version__, "HF_HUB_OFFLINE") if word not in text
    ] == []


def test_doctor_reports_a_model_before_it_is_loaded(hasten, tmp_path, monkeypatch, model):
    from tests.quantized_models import Scheme, quantize, register

    register(monkeypatch)
    folder, _ = quantize(Path(model), tmp_path, lambda name: Scheme(group_size=8) if "mlp" in name else None)
    report = json.loads(hasten("doctor", str(folder), "--dtype", "bfloat16", "--json").out)
    assert report["schemes"][0]["matrices"] == 9 and "hardware" not in report
    text = hasten("doctor", "--model", str(folder), "--dtype", "bfloat16").out
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert [title for title, _ in lines] == [
        "model",
        "architecture",
        "file",
        "weights",
        "dtype",
        "memory",
        "kernels",
        "tools",
        "thoughts",
    ]
    bits = f"{report['schemes'][0]['bits_per_weight']:.2f}"
    form = "kept as bfloat16 (rounded), float activations"
    assert dict(lines)["weights"] == f"Tiny int4, groups of 8, offsets: 9 matrices of {bits} bits per weight, {form}"
    assert "(rounded)" not in hasten("doctor", str(folder), "--dtype", "float32").out
    assert "not quantised; float activations" in hasten("doctor", model).out
    ran = hasten("doctor", model, "--activations", "int8")
    assert ran.code == 2 and "are not quantised" in ran.err


def test_doctor_takes_no_options_of_a_model_without_one(hasten):
    ran = hasten("doctor", "--activations", "int8", "--dtype", "float32")
    assert ran.code == 2 and "there is no model for these options: got --dtype float32 --activations int8" in ran.err
