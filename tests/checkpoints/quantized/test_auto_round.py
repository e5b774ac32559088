"""AutoRound: the layouts of GPTQ and AWQ under settings of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.quantized.stored import check_meaning, named, refusal, store
from tests.quantized_checkpoints import encode_awq, encode_gptq, input_groups

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, UnsupportedModel

WEIGHTS = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


def settings(**others: Any) -> dict[str, Any]:
    return {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "autoround_version": "0.8", **others}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("named_packing", [True, False], ids=["named", "default"])
def test_the_layout_of_gptq_is_read(tmp_path: Path, symmetric: bool, named_packing: bool) -> None:
    parts, expected = encode_gptq(WEIGHTS, bits=4, groups=input_groups(64, 32), symmetric=symmetric, version=1)
    packing = {"packing_format": "auto_round:auto_gptq"} if named_packing else {}
    check_meaning(Checkpoint.open(store(tmp_path, named(parts), settings(sym=symmetric, **packing))).matrices["m.weight"], expected)


def test_the_layout_of_awq_is_read(tmp_path: Path) -> None:
    parts, expected = encode_awq(WEIGHTS, group_size=32)
    folder = store(tmp_path, named(parts), settings(packing_format="auto_round:auto_awq", sym=False))
    check_meaning(Checkpoint.open(folder).matrices["m.weight"], expected)


def test_modules_with_other_bits_are_read_and_those_left_alone_stay_plain(tmp_path: Path) -> None:
    parts, expected = encode_gptq(WEIGHTS, bits=8, groups=input_groups(64, 16), symmetric=True, version=1)
    overrides = {"m": {"bits": 8, "group_size": 16}, "lm_head": {"bits": 16, "data_type": "float"}}
    tensors = {**named(parts), "lm_head.weight": WEIGHTS}
    checkpoint = Checkpoint.open(store(tmp_path, tensors, settings(extra_config=overrides)))
    check_meaning(checkpoint.matrices["m.weight"], expected)
    assert torch.equal(checkpoint.read("lm_head.weight"), WEIGHTS)


@pytest.mark.parametrize(
    ("others", "error", "expected"),
    [
        ({"packing_format": "auto_round:exl2"}, UnsupportedModel, "auto_round:auto_gptq, auto_round:auto_awq"),
        ({"packing_format": 4}, UnsupportedModel, "got 4"),
        ({"bits": 5}, UnsupportedModel, "got 5"),
        ({"extra_config": [1]}, CheckpointError, "got [1]"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, others: dict[str, Any], error: type[CheckpointError], expected: str
) -> None:
    parts, _ = encode_gptq(WEIGHTS, bits=4, groups=input_groups(64, 32), symmetric=True, version=1)
    assert expected in refusal(store(tmp_path, named(parts), settings(**others)), error)
