"""A grown model costs more and has the same outputs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hasten.checkpoints.formats.exits import read_exits
from hasten.checkpoints.hub import resolve
from hasten.training.target_model import TargetModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def import_benchmark(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def grow() -> ModuleType:
    return import_benchmark("grow")


@pytest.fixture(scope="module")
def source() -> Path:
    return resolve("demo-draft", None, quiet=True)


def test_a_grown_model_has_the_same_outputs(grow: ModuleType, source: Path, tmp_path: Path) -> None:
    grow.grow(source, tmp_path, grow.Growth(width=4, heads=2, layers=5, vocab_size=9000))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (512, 5, 9000)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (4, 4, 1536)
    largest, new_tokens = grow.difference(source, tmp_path)
    assert largest < 1e-3
    assert new_tokens < 1e-12


@pytest.mark.parametrize("numbers", [(1, 1, 2, 8192), (4, 1, 1, 8192), (4, 1, 2, 100)])
def test_a_smaller_size_is_refused(grow: ModuleType, source: Path, tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not grow"):
        grow.grow(source, tmp_path, grow.Growth(*numbers))


def test_grown_exits_have_the_same_outputs(grow: ModuleType, tmp_path: Path) -> None:
    """Growth only appends zeros to hidden states, so greedy tokens and confidences must be equal."""
    source, model = resolve("demo-exits", None, quiet=True), resolve("demo", None, quiet=True)
    heads = import_benchmark("grow_heads")
    grow.grow(model, tmp_path / "model", grow.Growth(width=4, heads=1, layers=12, vocab_size=9000))
    (tmp_path / "exits").mkdir()
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "model"))
    heads.grow_exits(source, tmp_path / "exits", old, new)
    old_outputs, new_outputs = exit_outputs(model, source), exit_outputs(tmp_path / "model", tmp_path / "exits")
    assert len(old_outputs) == len(new_outputs) >= 3
    for (logits, confidence), (new_logits, new_confidence) in zip(old_outputs, new_outputs, strict=True):
        assert torch.equal(logits.argmax(-1), new_logits[:, : logits.shape[1]].argmax(-1))
        assert torch.allclose(confidence, new_confidence, atol=1e-2)


def exit_outputs(model: Path, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the logits and the classifier's confidence of every exit, for 64 tokens."""
    target = TargetModel.load(model)
    spec = target.spec
    sizes = {"hidden_size": spec.hidden_size, "num_layers": spec.num_layers, "vocab_size": spec.vocab_size}
    exits = read_exits(folder, **sizes, layer_context=target.layer_context).exits
    ids = torch.arange(300, 364)[None]
    aux = target.hidden_states(ids, [layer - 1 for layer in exits.spec.layers]).aux_hidden_states
    with torch.inference_mode():
        return [
            (
                target.decoder.head(exits.at(layer).tuned_lens(aux[layer - 1])),
                exits.at(layer).agreement_logit(aux[layer - 1]).sigmoid(),
            )
            for layer in exits.spec.layers
        ]
