"""The dtype of a GGUF model: beside quantised matrices, one that keeps every other tensor exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.gguf_files import write_gguf
from torch import Tensor

from hasten.checkpoints.gguf import dtype as dtype_module
from hasten.checkpoints.reader import Checkpoint
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

BFLOAT16, FLOAT16 = 1 + 2**-7, 1 + 2**-10  # float16 holds both, bfloat16 only the first
LARGE = 2.0**17  # beyond float16
SUBNORMAL, TINY = 3 * 2.0**-24, 2.0**-25  # float16 holds only the first
QUANTISED, NORMS = {"*": "Q8_0"}, "model.norm.weight"


def write(folder: Path, source: Path, types: Mapping[str, str], *values: float) -> Path:
    """Write a GGUF file whose vectors are all ones, but for the first values of the last norm."""
    target = folder / "source"
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    tensors |= {name: torch.ones_like(tensor) for name, tensor in tensors.items() if tensor.ndim == 1}
    tensors[NORMS][: len(values)] = torch.tensor(values)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    write_gguf(folder / "model.gguf", target, types)
    return folder / "model.gguf"


def dtype_of(path: Path) -> object:
    return Checkpoint.open(path).config["dtype"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((), "bfloat16"),
        ((BFLOAT16, -LARGE, TINY), "bfloat16"),
        ((BFLOAT16, SUBNORMAL), "bfloat16"),
        ((FLOAT16,), "float16"),
        ((FLOAT16, SUBNORMAL, 65504.0), "float16"),
        ((FLOAT16, LARGE), "float32"),
        ((FLOAT16, TINY), "float32"),
        ((FLOAT16, 65520.0), "float32"),
        ((1 + 2**-11,), "float32"),
    ],
)
def test_vectors_are_kept_exactly(values: tuple[float, ...], expected: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path, tiny("llama-gqa"), QUANTISED, *values)
    assert dtype_of(path) == expected
    vectors = {name: tensor for name, tensor in load_file(tmp_path / "source" / "model.safetensors").items() if tensor.ndim == 1}
    norm: Tensor = load_decoder(path, ops=TorchOps()).decoder.norm.weight
    assert norm.dtype == getattr(torch, expected)
    assert torch.equal(norm.float(), vectors[NORMS])


@pytest.mark.parametrize(
    ("plain", "values", "expected"),
    [
        ({"*q_proj*": "F16"}, (), "float16"),
        ({"*q_proj*": "BF16"}, (), "bfloat16"),
        ({"*q_proj*": "F32"}, (), "float32"),
        ({"*q_proj*": "F16", "*up_proj*": "BF16"}, (), "float32"),
        ({"*q_proj*": "F16"}, (LARGE,), "float32"),
        ({"*q_proj*": "BF16"}, (FLOAT16,), "float32"),
        ({"*q_proj*": "F16"}, (FLOAT16,), "float16"),
    ],
)
def test_matrices_keep_their_type(
    plain: dict[str, str], values: tuple[float, ...], expected: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    assert dtype_of(write(tmp_path, tiny("llama-gqa"), {**plain, **QUANTISED}, *values)) == expected


@pytest.mark.parametrize(("kind", "expected"), [("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32")])
def test_a_file_without_quantised_matrices_has_the_dtype_of_most_weights(
    kind: str, expected: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    assert dtype_of(write(tmp_path, tiny("llama-gqa"), {"*": kind}, FLOAT16, LARGE)) == expected


def test_frequency_factors_are_no_weights(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path, tiny("llama-llama3"), QUANTISED)
    checkpoint = Checkpoint.open(path)
    factors = torch.tensor(checkpoint.config["rope_scaling"]["factors"])
    assert not torch.equal(factors, factors.bfloat16().float())
    assert checkpoint.config["dtype"] == "bfloat16"


def test_long_vectors_are_not_read(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, tiny("llama-gqa"), QUANTISED)
    size = json.loads((tmp_path / "source" / "config.json").read_text())["hidden_size"]
    for limit, expected in ((size, "bfloat16"), (size - 1, "float32")):
        monkeypatch.setattr(dtype_module, "_MAX_VECTOR", limit)
        assert dtype_of(path) == expected
