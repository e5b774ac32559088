"""FP8 in blocks: the tensors are those of an encoder in numpy, to the byte; transformers and hasten read them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.dense import dense_logits
from tests.quantized_checkpoints import encode_fp8
from tests.written_checkpoints import FP8_PER_TOKEN, Written, floats, fp8_groups, integers, write_checkpoint
from torch import Tensor
from transformers import AutoModelForCausalLM

from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.checkpoints.reader import Checkpoint
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

WRITER = find_writer("fp8")
SPEC = floats("FP8", (128, 128), fp8_groups(128))
PROMPT = [5, 9, 80, 3, 3, 41]


def _write(folder: Path, model: Path, dtype: torch.dtype = torch.float32) -> Written:
    """Leave one module alone."""
    quantised = lambda name: "layers" in name and "1.mlp.down" not in name  # noqa: E731
    return write_checkpoint(folder, model, "fp8", lambda name: SPEC if quantised(name) else None, dtype=dtype)


def test_files_are_those_of_an_independent_encoder(source: Callable[[str], Path], tmp_path: Path) -> None:
    model = source("wide")
    written = _write(tmp_path / "own", model)
    tensors, dense = load_file(written.folder / "model.safetensors"), load_file(model / "model.safetensors")
    assert len(written.rows) == 13
    for name in written.weights:
        expected, meaning = encode_fp8(dense.pop(name), block=(128, 128))
        for part, tensor in expected.items():
            found = tensors.pop(f"{name.removesuffix('weight')}{part}")
            assert found.dtype == tensor.dtype and torch.equal(_bytes(found), _bytes(tensor)), (name, part)
        assert torch.equal(written.weights[name], meaning)
    assert tensors.keys() == dense.keys()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hasten_and_transformers_read_what_was_written(dtype: torch.dtype, source: Callable[[str], Path], tmp_path: Path) -> None:
    written = _write(tmp_path / "own", source("wide"), dtype)
    assert WRITER.scale_dtype(dtype) == torch.float32
    matrices = Checkpoint.open(written.folder).matrices
    assert matrices.keys() == written.weights.keys()
    for module, given in written.rows.items():
        matrix = matrices[f"{module}.weight"]
        rows = matrix.rows(0, matrix.shape[0])
        assert matrix.spec == SPEC
        assert isinstance(rows, Fp8Rows) and isinstance(given, Fp8Rows)
        assert torch.equal(_bytes(rows.values_OI), _bytes(given.values_OI)) and torch.equal(rows.scales_OC, given.scales_OC)
    with warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_pretrained(written.folder, dtype=dtype).eval()
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], weights.to(dtype)) for name, weights in written.weights.items())
    if dtype == torch.float32:
        with torch.inference_mode():
            found = dense_logits(load_decoder(written.folder, dtype="float32", ops=TorchOps()).decoder, [PROMPT])
            assert (found - model(torch.tensor([PROMPT])).logits[0]).abs().max() < 1e-3


def test_settings_name_what_is_left_alone(source: Callable[[str], Path], tmp_path: Path) -> None:
    written = _write(tmp_path / "own", source("wide"))
    settings = json.loads((written.folder / "config.json").read_text())["quantization_config"]
    ignored = settings.pop("modules_to_not_convert")
    assert sorted(ignored) == ["lm_head", "model.embed_tokens", "model.layers.1.mlp.down_proj"]
    assert settings == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }


@pytest.mark.parametrize(
    "spec, fault",
    [
        (floats("FP8", (64, 64), fp8_groups(128)), "per block of 128 x 128, not blocks of 64 x 64"),
        (floats("FP8", "channel", fp8_groups(128)), "per block of 128 x 128, not per channel"),
        (floats("FP8", (128, 128)), "dynamic FP8 activations in groups of 128"),
        (floats("FP8", (128, 128), FP8_PER_TOKEN), "dynamic FP8 activations in groups of 128"),
        (replace(SPEC, bits=4), "8-bit floats, not fp4"),
    ],
)
def test_schemes_that_it_cannot_store_are_faults(spec: QuantSpec, fault: str) -> None:
    (found,) = WRITER.find_faults(spec, {"up": (128, 256)})
    assert found.startswith("fp8 ") and fault in found
    assert len(WRITER.find_faults(integers("FP8", 8), {})) == 3


def test_every_matrix_that_does_not_fit_is_a_fault() -> None:
    shapes = {"up": (384, 128), "down": (128, 200), "k": (64, 128), "lm_head": (128, 128)}
    assert WRITER.find_faults(SPEC, shapes) == [
        "down has 128 outputs and 200 inputs, no multiples of 128 and 128",
        "k has 64 outputs and 128 inputs, no multiples of 128 and 128",
        "fp8 does not quantise lm_head",
    ]
