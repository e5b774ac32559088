"""Growing a model changes what it costs and not what it says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hasten.checkpoints.hub import resolve

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
