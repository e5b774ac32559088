"""The ``quantization_config`` of compressed-tensors: what it says about modules, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compressed_checkpoints import (
    FP8_PER_TOKEN,
    MIXED,
    MIXED_NAMES,
    change_settings,
    change_tensors,
    floats,
    integers,
    open_error,
    weight_of,
    write_compressed,
    write_linear_groups,
    write_linears,
)

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import UnsupportedModel
from hasten.layers.formats.quant_spec import ActivationSpec

MODULE = "model.layers.0.mlp.up_proj"


def test_the_scheme_is_described(tmp_path: Path) -> None:
    inputs: list[tuple[Mapping[str, Any] | None, ActivationSpec | None]] = [
        (None, None),
        (FP8_PER_TOKEN, ActivationSpec("float", 8, True, "token")),
        ({"num_bits": 8, "strategy": "tensor"}, ActivationSpec("int", 8, False, "tensor")),
        (floats("group", group_size=32, dynamic=True), ActivationSpec("float", 8, True, "group", 32)),
        (floats("tensor_group", 4, group_size=16, dynamic="local"), ActivationSpec("float", 4, True, "group", 16)),
    ]
    for settings, expected in inputs:
        write_linears(tmp_path, {MODULE: (8, 64)}, integers(4), "pack-quantized", inputs=settings)
        spec = Checkpoint.open(tmp_path).matrices[f"{MODULE}.weight"].spec
        assert (spec.activations, spec.group_size, spec.scheme) == (expected, 32, "compressed-tensors")


def test_mixed_precision_follows_the_targets_of_the_library(tmp_path: Path) -> None:
    decoded = write_linear_groups(tmp_path, dict.fromkeys(MIXED_NAMES, (16, 64)), MIXED, "mixed-precision")
    matrices = Checkpoint.open(tmp_path).matrices
    assert {name: (matrix.spec.kind, matrix.spec.bits) for name, matrix in matrices.items()} == {
        "layers.0.up.weight": ("int", 4),
        "layers.0.q.weight": ("int", 4),
        "layers.0.down_proj.weight": ("float", 8),
        "layers.1.up.weight": ("float", 8),
        "layers.1.q.weight": ("int", 8),
        "layers.1.down_proj.weight": ("int", 8),  # patterns are tried by alphabet
        "layers.2.up.weight": ("float", 4),
        "layers.2.q.weight": ("float", 4),
        "layers.2.down_proj.weight": ("float", 8),
    }
    assert all(torch.equal(weight_of(matrices[name]), weight) for name, weight in decoded.items())
    change_settings(tmp_path, group={"targets": ["re:layers.0.up"]})
    assert "layers.0.q is quantised and no group of config_groups targets it" in open_error(tmp_path)


def test_tensors_of_a_quantised_kv_cache_are_ignored(tiny: Path, tmp_path: Path) -> None:
    write_compressed(tmp_path, tiny, "fp8")
    names = Checkpoint.open(tmp_path).tensors.keys()
    extra = ("self_attn.k_scale", "self_attn.v_scale", "self_attn.q_scale", "self_attn.v_proj.output_scale")
    change_tensors(tmp_path, lambda t: t.update({f"model.layers.0.{name}": torch.ones(1) for name in extra}))
    change_settings(tmp_path, kv_cache_scheme=floats("tensor"))
    assert Checkpoint.open(tmp_path).tensors.keys() == names
    # Only the cache is quantised.
    shutil.copytree(tiny, tmp_path / "plain")
    change_tensors(tmp_path / "plain", lambda t: t.update({f"model.layers.0.{name}": torch.ones(1) for name in extra}))
    config = json.loads((tiny / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": floats("tensor")}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    assert Checkpoint.open(tmp_path / "plain").tensors.keys() == Checkpoint.open(tiny).tensors.keys()


def test_lm_heads_may_be_quantised(tiny: Path, tmp_path: Path) -> None:
    weights = write_compressed(tmp_path, tiny, "w4a16", ignore=())
    matrices = Checkpoint.open(tmp_path).matrices
    assert torch.equal(weight_of(matrices["lm_head.weight"]), weights["lm_head.weight"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"format": "marlin-24", "group": {"format": None}}, ["marlin-24", "pack-quantized, int-quantized"]),
        ({"format": "mixed-precision", "group": {"format": None}}, ["mixed-precision"]),
        ({"group": {"format": "int-quantised"}}, ["Did you mean 'int-quantized'"]),
        ({"group": {"format": ["x"]}}, ["['x']"]),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, ["sparse-24-bitmask", "dense weights"]),
        ({"sparsity_config": ["x"]}, ["sparse"]),
        ({"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}}, ["transforms", "hadamard"]),
        ({"weights": {"num_bits": 1}}, ["int1", "int2 to int8"]),
        ({"weights": {"num_bits": 16}}, ["int16"]),
        ({"weights": {"type": "float", "num_bits": 8}}, ["pack-quantized", "float8", "int2 to int8"]),
        ({"weights": {"strategy": "attn_head"}}, ["attn_head", "tensor, channel, group, block"]),
        ({"weights": {"strategy": "tensor_group"}}, ["tensor_group"]),
        (
            {"group": {"format": "float-quantized"}, "weights": {"type": "float", "num_bits": 8, "symmetric": False}},
            ["zero points"],
        ),
        ({"inputs": {"num_bits": 8, "dynamic": True, "strategy": "token", "symmetric": False}}, ["activations with zero points"]),
        ({"inputs": {"num_bits": 8, "strategy": "token"}}, ["static activations", "token"]),
        ({"inputs": {"num_bits": 8, "dynamic": True, "strategy": "channel"}}, ["dynamic activations", "channel"]),
        ({"group": {"weights": None}, "inputs": {"num_bits": 8}}, ["without weights"]),
        ({"group": {"output_activations": {"num_bits": 8}}}, ["quantised inputs"]),
    ],
)
def test_unsupported_schemes_are_named(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    write_linears(tmp_path, {MODULE: (8, 64)}, integers(4), "pack-quantized")
    change_settings(tmp_path, **changes)
    message = open_error(tmp_path, UnsupportedModel)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"config_groups": ["x"]}, "config_groups"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups"),
        ({"group": {"targets": "Linear"}}, "targets"),
        ({"group": {"weights": "x"}}, "weights"),
        ({"weights": {"num_bits": 4.0}}, "num_bits"),
        ({"weights": {"type": "double"}}, "type"),
        ({"weights": {"type": []}}, "type"),
        ({"weights": {"symmetric": 1}}, "symmetric"),
        ({"weights": {"strategy": 3}}, "strategy"),
        ({"weights": {"group_size": 0}}, "group_size"),
        ({"weights": {"group_size": -1}}, "group_size"),
        ({"weights": {"group_size": []}}, "group_size"),
        ({"weights": {"dynamic": True}}, "dynamic"),
        ({"weights": {"actorder": 3}}, "actorder"),
        ({"weights": {"strategy": "block", "block_structure": [0, 4]}}, "block_structure"),
        ({"weights": {"strategy": "block", "block_structure": "4x"}}, "block_structure"),
        ({"inputs": "x"}, "input_activations"),
        ({"inputs": {"dynamic": []}}, "dynamic"),
    ],
)
def test_values_that_are_not_valid_are_named(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    write_linears(tmp_path, {MODULE: (8, 64)}, integers(4), "pack-quantized")
    change_settings(tmp_path, **changes)
    assert f"no valid '{key}'" in open_error(tmp_path)
