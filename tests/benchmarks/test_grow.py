"""Growing a model changes what it costs and not what it says."""

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
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.training.target_model import TargetModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def grow() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("grow")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def source() -> Path:
    return resolve("demo-draft", None, quiet=True)


def test_a_grown_model_says_the_same(grow: ModuleType, source: Path, tmp_path: Path) -> None:
    grow.grow(source, tmp_path, grow.Growth(width=4, heads=2, layers=5, vocabulary=9000))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (512, 5, 9000)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (4, 4, 1536)
    most, others = grow.difference(source, tmp_path)
    assert most < 1e-3
    assert others < 1e-12


@pytest.mark.parametrize("numbers", [(1, 1, 2, 8192), (4, 1, 1, 8192), (4, 1, 2, 100)])
def test_what_does_not_grow_is_refused(grow: ModuleType, source: Path, tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not grow"):
        grow.grow(source, tmp_path, grow.Growth(*numbers))


def test_grown_exits_say_the_same_of_a_grown_model(grow: ModuleType, tmp_path: Path) -> None:
    """Layers in between do nothing, so states are the same but for zeros, and so must certainties and choices be."""
    source, model = resolve("demo-exits", None, quiet=True), resolve("demo", None, quiet=True)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        heads = importlib.import_module("grow_heads")
    finally:
        sys.path.remove(str(BENCHMARKS))
    grow.grow(model, tmp_path / "model", grow.Growth(width=4, heads=1, layers=12, vocabulary=9000))
    (tmp_path / "exits").mkdir()
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "model"))
    heads.grow_exits(source, tmp_path / "exits", old, new)
    found = [states_and_exits(model, source), states_and_exits(tmp_path / "model", tmp_path / "exits")]
    assert len(found[0]) == len(found[1]) >= 3
    for (ours, sure), (theirs, sure_too) in zip(*found, strict=True):
        assert torch.equal(ours.argmax(-1), theirs[:, : ours.shape[1]].argmax(-1))
        assert torch.allclose(sure, sure_too, atol=1e-2)


def states_and_exits(model: Path, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every exit: its logits after 64 tokens of held-out text, and the classifier's certainty."""
    target = TargetModel.load(model)
    build = LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32)
    sizes = {"hidden_size": target.spec.hidden_size, "num_layers": target.spec.num_layers}
    exits = read_exits(folder, **sizes, vocab_size=target.spec.vocab_size, layer_context=build).exits
    ids = torch.arange(300, 364)[None]
    states = target.states(ids, aux_layer_indices=[layer - 1 for layer in exits.spec.layers])
    with torch.inference_mode():
        return [
            (
                target.decoder.head(exits.at(layer).tuned_lens(states.aux_hidden_states[layer - 1])),
                exits.at(layer).agreement_logit(states.aux_hidden_states[layer - 1]).sigmoid(),
            )
            for layer in exits.spec.layers
        ]
