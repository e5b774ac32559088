"""A mixed model: what was measured is what is written, and an interrupted search goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hasten.checkpoints.reader import Checkpoint
from hasten.compress.quantize.mixed import quantize as lifecycle
from hasten.compress.quantize.mixed.kl_evaluator import KlEvaluator
from hasten.compress.quantize.mixed.quantize import quantize_mixed
from hasten.compress.quantize.options import QuantizeOptions
from hasten.entrypoints.evaluation import evaluate

SMALL = {"method": "auto", "samples": 4, "seq_len": 64}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's first three layers: a weak model, of which a search takes seconds."""
    import torch
    from transformers import AutoModelForCausalLM

    from hasten.checkpoints.hub import resolve

    folder = tmp_path_factory.mktemp("models") / "three"
    model = AutoModelForCausalLM.from_pretrained(resolve("demo"), dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:3]
    model.config.num_hidden_layers = 3
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(resolve("demo") / name, folder / name)
    return folder


def bits_of_layers(folder: Path) -> list[int]:
    checkpoint = Checkpoint.open(folder)
    names = [f"model.layers.{index}.mlp.up_proj.weight" for index in range(3)]
    return [checkpoint.matrices[name].spec.bits if name in checkpoint.matrices else 16 for name in names]


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq"])
def test_the_written_model_has_the_measured_divergence_and_size(demo, tmp_path, format):
    options = QuantizeOptions(**SMALL, max_kl=0.01, format=format)
    made = quantize_mixed(str(demo), tmp_path / "out", options, num_validation_tokens=2400)
    assert made is not None
    bits = bits_of_layers(tmp_path / "out")
    assert made.card.options["bits of each layer"] == " ".join(map(str, bits)) and set(bits) != {16}
    said = float(str(made.card.options["KL on text that the search did not use"]).split(",")[0])
    quality = evaluate(str(tmp_path / "out"), {"backend": "torch", "dtype": "float32"}, against=str(demo), num_tokens=2048).quality
    assert said <= 0.01 and quality.kl_mean == pytest.approx(said, rel=0.5)
    smaller = QuantizeOptions(**SMALL, target_bytes=made.nbytes, format=format)
    again = quantize_mixed(str(demo), tmp_path / "again", smaller, num_validation_tokens=2400)
    assert again is not None and again.nbytes <= made.nbytes
    with pytest.raises(Exception, match="target_bytes"):
        quantize_mixed(str(demo), tmp_path / "none", QuantizeOptions(**SMALL, target_bytes=10_000, format=format))
    assert not (tmp_path / "none").exists()


def test_a_resumed_search_measures_nothing_twice(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.compress.quantize.calibration_state.SAVE_EVERY", 0.0)
    options = QuantizeOptions(**SMALL, max_kl=0.01)
    whole = quantize_mixed(str(demo), tmp_path / "whole", options, num_validation_tokens=2400)
    measured: list[tuple[int, ...]] = []
    evaluate_bits = KlEvaluator.evaluate

    def record(self, bits):
        measured.append(tuple(bits))
        return evaluate_bits(self, bits)

    monkeypatch.setattr(lifecycle.KlEvaluator, "evaluate", record)
    assert (
        quantize_mixed(str(demo), tmp_path / "out", options, num_validation_tokens=2400, should_stop=lambda: len(measured) == 5)
        is None
    )
    assert len(measured) == 5 and not (tmp_path / "out").exists()
    made = quantize_mixed(str(demo), tmp_path / "out", options, num_validation_tokens=2400, resume=True)
    assert whole is not None and made is not None
    assert len(measured) <= 2 * len(set(measured))  # once to search and once to confirm
    names = ("model.safetensors", "config.json")
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_a_format_of_one_width_is_refused(demo, tmp_path):
    with pytest.raises(Exception, match="awq"):
        quantize_mixed(str(demo), tmp_path / "out", QuantizeOptions(**SMALL, max_kl=0.01, format="awq"))
    assert list(tmp_path.iterdir()) == []
