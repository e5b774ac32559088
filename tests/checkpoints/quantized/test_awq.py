"""AWQ: equal bit for bit to the encoder's own meaning and to the converter of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from tests.checkpoints.quantized.stored import check_meaning, named, refusal, store
from tests.quantized_checkpoints import encode_awq, write_awq
from tests.tiny_models import tiny_checkpoint
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import UnsupportedModel
from hasten.layers.formats.stored_matrix import GroupedRows

SHAPES = [(32, 64, 32), (40, 72, 24), (8, 8, 8), (104, 33, 11), (16, 7, 7), (48, 80, -1)]  # O, I and group


def _settings(group_size: int = 32, **others: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm", **others}


def _encode(outputs: int = 32, inputs: int = 64, group_size: int = 32, zero_point: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    weights = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs * inputs))
    return encode_awq(weights, group_size=group_size, zero_point=zero_point)


def _convert(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Return what compressed-tensors reads."""
    stored = AutoAWQConverter.from_autoawq_config(dict(settings)).process(named(parts))
    shape = torch.Size(stored["m.weight_shape"].tolist())
    scales = stored["m.weight_scale"].float()
    codes = unpack_from_int32(stored["m.weight_packed"], 4, shape).float().unflatten(1, (scales.shape[1], -1))
    if settings["zero_point"]:
        zeros = unpack_from_int32(stored["m.weight_zero_point"], 4, scales.shape, packed_dim=0)
        codes = codes - zeros[..., None].float()
    return (codes * scales[..., None]).flatten(1)


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_exact(shape: tuple[int, int, int], zero_point: bool, tmp_path: Path) -> None:
    parts, expected = _encode(*shape, zero_point=zero_point)
    settings = _settings(shape[2], zero_point=zero_point)
    assert torch.equal(_convert(parts, settings), expected)
    matrix = Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"]
    check_meaning(matrix, expected)
    assert matrix.input_order() is None
    assert matrix.nbytes == sum(tensor.nbytes for tensor in parts.values())
    channel = shape[2] in (-1, shape[1])
    assert matrix.spec.granularity == ("channel" if channel else "group")
    assert matrix.spec.group_size == (None if channel else shape[2])
    assert matrix.spec.zero == (None if zero_point else 8)
    assert matrix.spec.scheme == "AWQ"


def test_any_words_are_exact(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {
        "qweight": torch.randint(-(2**31), 2**31, (64, 5), generator=draw).int(),
        "qzeros": torch.randint(-(2**31), 2**31, (4, 5), generator=draw).int(),
        "scales": torch.randn(4, 40, generator=draw).half(),
    }
    settings = _settings(16)
    matrix = Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"]
    check_meaning(matrix, _convert(parts, settings))


@pytest.mark.parametrize("word", [0, 0x88888888 - 2**32])
def test_zeros_that_fill_a_place_are_not_read(word: int, tmp_path: Path) -> None:
    parts, expected = _encode(zero_point=False)
    parts["qzeros"] = torch.full((2, 4), word, dtype=torch.int32)
    settings = _settings(zero_point=False)
    matrix = Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"]
    check_meaning(matrix, expected)
    assert torch.equal(_convert(parts, settings), expected)
    assert "m.qzeros" in matrix.parts


@pytest.mark.parametrize("zero_point", [True, False])
def test_a_checkpoint_keeps_its_other_tensors(zero_point: bool, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama-mqa-bias", tmp_path)
    expected = write_awq(tmp_path / "awq", source, zero_point=zero_point)
    checkpoint, plain = Checkpoint.open(tmp_path / "awq"), Checkpoint.open(source)
    for name, weights in expected.items():
        check_meaning(checkpoint.matrices[name], weights)
    assert set(checkpoint.tensors) == set(plain.tensors) - set(expected)
    assert "model.layers.0.self_attn.q_proj.bias" in checkpoint.tensors


def test_settings_of_the_first_files_are_read(tmp_path: Path) -> None:
    parts, expected = _encode(group_size=16)
    folder = store(tmp_path, named(parts), {"quant_method": "awq", "w_bit": 4, "q_group_size": 16, "version": "GEMM"})
    check_meaning(Checkpoint.open(folder).matrices["m.weight"], expected)


FAULTS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "zeros": (lambda t: t.pop("m.qzeros"), {}, ["1 fault", "m.qzeros is missing"]),
    "scales": (lambda t: t.pop("m.scales"), {"zero_point": False}, ["1 fault", "m.scales is missing"]),
    "two weights": (lambda t: t.update({"m.weight": torch.ones(2)}), {}, ["m.weight and m.qweight both exist"]),
    "several": (
        lambda t: t.update({"m.scales": t["m.scales"][:, 1:].double(), "m.qzeros": t["m.qzeros"][:1]}),
        {},
        ["3 faults", "m.scales is [2, 31], expected [2, 32]", "m.scales is F64", "m.qzeros is [1, 4], expected [2, 4]"],
    ),
    "codes": (lambda t: t.update({"m.qweight": t["m.qweight"].float()}), {}, ["m.qweight is F32, expected I32"]),
    "empty": (lambda t: t.update({"m.qweight": t["m.qweight"][:, :0]}), {}, ["m.qweight is [64, 0], expected a matrix"]),
    "group that does not divide": (lambda t: t, {"group_size": 48}, ["m has 64 inputs, which groups of 48 do not divide"]),
    "other groups": (lambda t: t, {"group_size": 16}, ["m.scales is [2, 32], expected [4, 32]"]),
    "denied zeros": (lambda t: t, {"zero_point": False}, ["m.qzeros", "zeros other than 8", "zero_point is false"]),
    "scale NaN": (lambda t: t["m.scales"].__setitem__((1, 3), float("nan")), {}, ["m.scales", "NaN"]),
    "scales 0": (lambda t: t["m.scales"].zero_(), {}, ["m.scales", "all 0"]),
    "group size": (lambda t: t, {"group_size": True}, ["group_size", "got True"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, tmp_path: Path) -> None:
    damage, settings, expected = FAULTS[fault]
    tensors = named(_encode()[0])
    damage(tensors)
    message = refusal(store(tmp_path, tensors, {**_settings(), **settings}))
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"version": "gemv"}, ["'gemv'", "gemm"]),
        ({"version": "Marlin"}, ["'marlin'"]),
        ({"version": "exllama"}, ["'exllama'"]),
        ({"version": None, "checkpoint_format": "gemv_fast"}, ["'gemv_fast'"]),
        ({"bits": 8}, ["bits", "got 8"]),
        ({"zero_point": "yes"}, ["zero_point", "got 'yes'"]),
    ],
)
def test_another_layout_is_refused_by_name(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    message = refusal(store(tmp_path, named(_encode()[0]), {**_settings(), **settings}), UnsupportedModel)
    assert all(part in message for part in ["AWQ", *expected]), message


def test_rows_do_not_share_memory_with_the_file(tmp_path: Path) -> None:
    parts, expected = _encode(8, 8, 8)
    parts["scales"] = parts["scales"].float()
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings(8))).matrices["m.weight"]
    rows = matrix.rows(0, 8)
    assert isinstance(rows, GroupedRows)
    rows.codes_OI.zero_()
    rows.scales_OG.zero_()
    check_meaning(matrix, expected)
