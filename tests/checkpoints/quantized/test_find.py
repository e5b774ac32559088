"""``find_matrices``: which scheme a checkpoint has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.quantized.stored import check_meaning, named, refusal, store
from tests.quantized_checkpoints import encode_awq, encode_gptq, input_groups

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import UnsupportedModel

WEIGHTS = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [None, {}])
def test_a_float_checkpoint_has_no_matrices(settings: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = store(tmp_path, {"a.weight": torch.ones(2, 2)}, settings)
    (folder / "quantize_config.json").write_text("not JSON")  # without packed codes, the file is not read
    checkpoint = Checkpoint.open(folder)
    assert not checkpoint.matrices
    assert set(checkpoint.tensors) == {"a.weight"}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"quant_method": "gptp"}, ["'gptp'", "Did you mean 'gptq'", "awq"]),
        ({"quant_method": 3}, ["got 3"]),
        ({"quant_method": ["gptq"]}, ["got ['gptq']"]),
        ({"bits": 4}, ["got None"]),
    ],
)
def test_an_unknown_scheme_is_named_with_the_known_ones(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    message = refusal(store(tmp_path, {"a.weight": torch.ones(2, 2)}, settings), UnsupportedModel)
    assert all(part in message for part in ["gptq, awq, auto-round, compressed-tensors, fp8", *expected]), message


def test_settings_that_are_no_table_are_refused(tmp_path: Path) -> None:
    folder = store(tmp_path, {"a.weight": torch.ones(2, 2)}, None)
    (folder / "config.json").write_text('{"quantization_config": [4]}')
    assert "got [4]" in refusal(folder, UnsupportedModel)


def test_the_file_that_autogptq_wrote_beside_the_configuration_is_read(tmp_path: Path) -> None:
    parts, expected = encode_gptq(WEIGHTS, bits=4, groups=input_groups(64, 32, seed=0), symmetric=False, version=1)
    folder = store(tmp_path, named(parts), None)
    settings = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": True, "sym": False, "model_name_or_path": None}
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    check_meaning(Checkpoint.open(folder).matrices["m.weight"], expected)
    (folder / "quantize_config.json").write_text(json.dumps({**settings, "quant_method": "x"}))
    assert "got 'x'" in refusal(folder, UnsupportedModel)
    (folder / "quantize_config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(folder)


def test_the_file_that_autoawq_wrote_beside_the_configuration_is_read(tmp_path: Path) -> None:
    parts, expected = encode_awq(WEIGHTS, group_size=32)
    folder = store(tmp_path, named(parts), None)
    (folder / "quant_config.json").write_text(json.dumps({"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}))
    matrix = Checkpoint.open(folder).matrices["m.weight"]
    check_meaning(matrix, expected)
    assert matrix.spec.scheme == "AWQ"


def test_codes_without_a_configuration_are_refused(tmp_path: Path) -> None:
    parts, _ = encode_awq(WEIGHTS, group_size=32)
    message = refusal(store(tmp_path, named(parts), None))
    assert "m.qweight" in message
    assert "quantization_config" in message


def test_weights_of_modelopt_are_named_by_the_file_beside_the_configuration(tmp_path: Path) -> None:
    parts = {"weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale": torch.tensor(1.0)}
    folder = store(tmp_path, named(parts), None)
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}})
    )
    assert "got 'modelopt'" in refusal(folder, UnsupportedModel)
    store(folder, {"m.weight": torch.ones(4, 4)}, None)  # a file that quantises the KV cache only
    assert not Checkpoint.open(folder).matrices
