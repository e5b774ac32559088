"""AWQ: the tensors are those of an encoder in numpy, to the byte; compressed-tensors' converter and hasten read them.

GPTQModel 7.6 once loaded such files, with modules that are left alone: the logits of the same weights in float16.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from safetensors.torch import load_file
from tests.quantized_checkpoints import encode_awq
from tests.written_checkpoints import INT8_PER_TOKEN, floats, integers, write_checkpoint
from torch import Tensor
from transformers import AwqConfig

from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.checkpoints.reader import Checkpoint
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows

WRITER = find_writer("awq")


def awq(group_size: int | None = 32, *, symmetric: bool = False) -> QuantSpec:
    spec = integers("AWQ", 4, group_size)
    return spec if symmetric else replace(spec, zero=None)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128, None])
def test_files_are_those_of_an_independent_encoder(
    group_size: int | None, symmetric: bool, source: Callable[[str], Path], tmp_path: Path
) -> None:
    model = source("wide" if group_size == 128 else "llama-mqa-bias")
    spec = awq(group_size, symmetric=symmetric)
    written = write_checkpoint(tmp_path / "own", model, "awq", lambda name: spec if "layers" in name else None)
    tensors, dense = load_file(written.folder / "model.safetensors"), load_file(model / "model.safetensors")
    checkpoint = Checkpoint.open(written.folder)
    for name in written.weights:
        weights, module = dense.pop(name), name.removesuffix(".weight")
        if symmetric:
            expected, meaning = encode_awq(weights, group_size=group_size or -1, zero_point=False)
            expected["qzeros"] = torch.full_like(tensors[f"{module}.qzeros"], 0x88888888 - 2**32)
        else:
            expected, meaning = encode_awq(weights, group_size=group_size or -1)
        for part, tensor in expected.items():
            found = tensors.pop(f"{module}.{part}")
            assert found.dtype == tensor.dtype and torch.equal(found, tensor), (module, part)
        matrix, given = checkpoint.matrices[name], written.rows[module]
        rows = matrix.rows(0, matrix.shape[0])
        assert matrix.spec == awq(group_size)
        assert isinstance(rows, GroupedRows) and isinstance(given, GroupedRows)
        assert torch.equal(rows.codes_OI, given.codes_OI) and torch.equal(rows.scales_OG, given.scales_OG)
        assert isinstance(rows.zeros, Tensor)
        assert torch.equal(rows.zeros, torch.as_tensor(given.zeros, dtype=torch.float32).expand(rows.zeros.shape))
        assert torch.equal(rows.dequantize(), meaning)
    assert tensors.keys() == dense.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in dense.items())


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_converter_of_compressed_tensors_reads_the_same_weights(
    symmetric: bool, source: Callable[[str], Path], tmp_path: Path
) -> None:
    spec = awq(symmetric=symmetric)
    written = write_checkpoint(tmp_path / "own", source("qwen3-gqa"), "awq", lambda name: spec if "layers" in name else None)
    settings = json.loads((written.folder / "config.json").read_text())["quantization_config"]
    converter, tensors = AutoAWQConverter.from_autoawq_config(settings), load_file(written.folder / "model.safetensors")
    for name, weights in written.weights.items():
        module, (outputs, inputs) = name.removesuffix(".weight"), weights.shape
        parts = {key: tensors[key] for key in (f"{module}.qweight", f"{module}.qzeros", f"{module}.scales")}
        converted = converter.process(parts)
        codes = unpack_from_int32(converted[f"{module}.weight_packed"], 4, torch.Size([outputs, inputs]))
        zeros = unpack_from_int32(converted[f"{module}.weight_zero_point"], 4, torch.Size([outputs, inputs // 32]), packed_dim=0)
        groups = codes.view(outputs, -1, 32).float() - zeros[..., None].float()
        assert torch.equal((groups * converted[f"{module}.weight_scale"][..., None].float()).flatten(1), weights)


def test_settings_name_what_is_left_alone() -> None:
    specs = {"model.layers.0.mlp.up_proj": awq(128), "model.layers.1.mlp.up_proj": awq(128, symmetric=True)}
    settings = WRITER.settings(specs, ["model.embed_tokens"])
    expected = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    assert settings == {**expected, "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
    settings = WRITER.settings({"model.layers.0.mlp.up_proj": awq(None)}, ["lm_head", "model.layers.1.mlp.up_proj"])
    assert settings["modules_to_not_convert"] == ["lm_head", "model.layers.1.mlp.up_proj"]
    assert settings["dynamic"] == {
        r"-:model\.layers\.1\.mlp\.up_proj$": {},
        r"-:model\.layers\.1\.mlp\.gate_up_proj$": {},
    }
    parsed = AwqConfig.from_dict(settings)
    assert (parsed.bits, parsed.group_size, parsed.zero_point, parsed.format) == (4, -1, True, "gemm")
    assert parsed.modules_to_not_convert == settings["modules_to_not_convert"]


@pytest.mark.parametrize(
    "spec, fault",
    [
        (integers("AWQ", 8), "4-bit integers, not int8"),
        (floats("AWQ", "channel"), "4-bit integers, not fp8"),
        (replace(awq(), granularity="tensor"), "not per tensor"),
        (replace(awq(), is_nested=True), "has no nested scales"),
        (replace(awq(), activations=INT8_PER_TOKEN), "does not quantise activations"),
    ],
)
def test_schemes_that_it_cannot_store_are_faults(spec: QuantSpec, fault: str) -> None:
    (found,) = WRITER.find_faults(spec, {"up": (64, 64)})
    assert found.startswith("awq ") and fault in found


def test_every_matrix_that_does_not_fit_is_a_fault() -> None:
    shapes = {"up": (96, 64), "down": (64, 96), "out": (36, 72), "lm_head": (100, 64)}
    assert WRITER.find_faults(awq(64), shapes) == [
        "down has 96 inputs, no multiple of 64",
        "out has 72 inputs, no multiple of 64",
        "out has 36 outputs, no multiple of 8",
        "lm_head has 100 outputs, no multiple of 8",
        "awq does not quantise lm_head",
    ]
    assert not WRITER.find_faults(awq(None), {"up": (96, 65)})
