"""GPTQ: equal bit for bit to the encoder's own meaning, at every width, order and version."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints.quantized.stored import check_meaning, named, refusal, store
from tests.quantized_checkpoints import encode_gptq, input_groups, write_dequantized, write_gptq
from tests.tiny_models import tiny_checkpoint
from torch import Tensor

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError, UnsupportedModel
from hasten.layers.formats.stored_matrix import GroupedRows

Parts = dict[str, Tensor]

# bits -> shapes [O, I] and groups; -1 is one group, and the last group of some is shorter
SHAPES = {
    2: [(32, 64, 32), (40, 48, 16), (33, 80, -1), (17, 96, 64)],
    3: [(32, 64, 32), (96, 160, 32), (64, 96, -1), (32, 96, 64)],
    4: [(32, 64, 32), (40, 72, 24), (33, 104, -1), (17, 96, 64), (8, 8, 128)],
    8: [(32, 64, 32), (40, 36, 12), (33, 100, -1), (17, 96, 64)],
}


def _weights(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs * inputs))


def _settings(bits: int = 4, group_size: int = 32, version: int = 1, **others: Any) -> dict[str, Any]:
    checkpoint_format = "gptq" if version == 1 else "gptq_v2"
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "checkpoint_format": checkpoint_format, **others}


def _encode(
    outputs: int = 32, inputs: int = 64, group_size: int = 32, *, seed: int | None = None, **how: Any
) -> tuple[Parts, Tensor]:
    groups = input_groups(inputs, group_size, seed)
    how = {"bits": 4, "symmetric": True, "version": 1, **how}
    return encode_gptq(_weights(outputs, inputs), groups=groups, **how)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits, shape", [(bits, shape) for bits, shapes in SHAPES.items() for shape in shapes])
def test_every_width_order_and_version_is_exact(
    bits: int, shape: tuple[int, int, int], symmetric: bool, version: int, tmp_path: Path
) -> None:
    tensors: Parts = {}
    expected = {}
    for module, seed in (("natural", None), ("shuffled", 1)):
        parts, expected[module] = _encode(*shape, seed=seed, bits=bits, symmetric=symmetric, version=version)
        tensors |= named(parts, module)
    matrices = Checkpoint.open(store(tmp_path, tensors, _settings(bits, shape[2], version, sym=symmetric))).matrices
    assert set(matrices) == {"natural.weight", "shuffled.weight"}
    one_group = not 0 < shape[2] < shape[1]
    for module in expected:
        matrix = matrices[f"{module}.weight"]
        check_meaning(matrix, expected[module])
        spec = matrix.spec
        assert (spec.scheme, spec.kind, spec.bits, spec.activations) == ("GPTQ", "int", bits, None)
        assert (spec.granularity, spec.group_size) == (("channel", None) if one_group else ("group", shape[2]))
        assert spec.zero == (1 << (bits - 1) if symmetric else None)
        assert spec.reorders_inputs is (module == "shuffled" and not one_group)
        assert matrix.nbytes == sum(tensors[part].nbytes for part in matrix.parts)
        assert set(matrix.parts) == {f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}


@pytest.mark.parametrize("name", ["llama-mqa-bias", "qwen3-gqa", "llama-sharded"])
def test_a_checkpoint_keeps_its_other_tensors(name: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(name, tmp_path)
    expected = write_gptq(tmp_path / "gptq", source, desc_act=True, symmetric=False, lm_head=True)
    checkpoint, plain = Checkpoint.open(tmp_path / "gptq"), Checkpoint.open(source)
    for weight, weights in expected.items():
        check_meaning(checkpoint.matrices[weight], weights)
    assert set(checkpoint.matrices) == set(expected)
    assert ("lm_head.weight" in expected) is (name != "llama-sharded")
    assert set(checkpoint.tensors) == set(plain.tensors) - set(expected)
    assert all(torch.equal(checkpoint.read(tensor), plain.read(tensor)) for tensor in checkpoint.tensors)
    write_dequantized(tmp_path / "float32", source, expected)
    twin = Checkpoint.open(tmp_path / "float32")
    assert set(twin.tensors) == set(plain.tensors)
    assert all(torch.equal(twin.read(weight), weights) for weight, weights in expected.items())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("written", [1, 2])
@pytest.mark.parametrize("named_as", [1, 2, None])
def test_zeros_of_a_symmetric_matrix_say_their_version(bits: int, written: int, named_as: int | None, tmp_path: Path) -> None:
    parts, expected = _encode(bits=bits, version=written)
    if bits == 4:
        assert set(parts["qzeros"].flatten().tolist()) == {0x77777777 if written == 1 else 0x88888888 - 2**32}
    settings = _settings(bits, version=named_as or 1)
    if named_as is None:
        del settings["checkpoint_format"]
    matrix = Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"]
    check_meaning(matrix, expected)
    assert matrix.spec.zero == 1 << (bits - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_largest_zero_of_version_1_means_0(bits: int, tmp_path: Path) -> None:
    parts, _ = _encode(bits=bits, symmetric=False)
    parts["qzeros"] = torch.full_like(parts["qzeros"], -1)
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings(bits))).matrices["m.weight"]
    rows = matrix.rows(3, 9)
    assert isinstance(rows, GroupedRows)
    assert isinstance(rows.zeros, Tensor)
    assert rows.zeros.tolist() == [[0.0, 0.0]] * 6


def test_the_order_of_inputs_makes_groups_contiguous(tmp_path: Path) -> None:
    groups = torch.tensor([1, 0, 1, 0, 0, 1, 1, 0], dtype=torch.int32)
    parts, expected = encode_gptq(_weights(8, 8), bits=4, groups=groups.numpy(), symmetric=False, version=1)
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings(group_size=4))).matrices["m.weight"]
    order = matrix.input_order()
    assert order is not None
    assert order.tolist() == [1, 3, 4, 7, 0, 2, 5, 6]  # stable: ascending within a group
    assert torch.equal(matrix.rows(0, 8).dequantize(), expected[:, order])
    assert matrix.spec.reorders_inputs


@pytest.mark.parametrize("g_idx", ["int64", "absent", "zeros"])
def test_inputs_in_order_have_no_order(g_idx: str, tmp_path: Path) -> None:
    parts, expected = _encode()
    if g_idx == "absent":
        del parts["g_idx"]
    else:
        parts["g_idx"] = parts["g_idx"].long() * (g_idx == "int64")
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings(desc_act=False))).matrices["m.weight"]
    assert matrix.input_order() is None
    check_meaning(matrix, expected)


def test_modules_have_the_width_of_their_tensors(tmp_path: Path) -> None:
    """``dynamic`` names modules by regular expressions, which hasten does not run: shapes say the width."""
    dynamic = {"+:.*a$": {"bits": 8, "group_size": 16}, "b": {"bits": 2}, "-:c": {}, "(x+x+)+y": {"bits": 3, "group_size": -1}}
    tensors = {"c.weight": torch.ones(4, 4)}
    expected = {}
    for module, bits, size in (("a", 8, 16), ("b", 2, 32), ("x" * 40, 3, -1), ("other", 4, 32)):
        parts, expected[module] = _encode(32, 96, size, bits=bits, symmetric=False)
        tensors |= named(parts, module)
    checkpoint = Checkpoint.open(store(tmp_path, tensors, _settings(dynamic=dynamic)))
    for module, weights in expected.items():
        check_meaning(checkpoint.matrices[f"{module}.weight"], weights)
    assert set(checkpoint.tensors) == {"c.weight"}


def test_many_overrides_take_linear_time(tmp_path: Path) -> None:
    parts, expected = _encode()
    many = {f"key{index}": 0 for index in range(30_000)}
    folder = store(tmp_path, named(parts), _settings(dynamic={f"m{index}": {} for index in range(30_000)}, **many))
    start = time.process_time()
    check_meaning(Checkpoint.open(folder).matrices["m.weight"], expected)
    assert time.process_time() - start < 2


def _without(*parts: str) -> Any:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name.split(".")[-1] not in parts}


def _with(part: str, change: Any) -> Any:
    return lambda tensors: {**tensors, f"m.{part}": change(tensors.get(f"m.{part}"))}


FAULTS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "codes": (_without("qweight"), {}, ["1 fault", "m.qweight is missing"]),
    "only codes": (_without("qzeros", "scales"), {}, ["2 faults", "m.qzeros is missing", "m.scales is missing"]),
    "g_idx": (_without("g_idx"), {"desc_act": True}, ["m.g_idx is missing"]),
    "two weights": (_with("weight", lambda _: torch.ones(2)), {}, ["m.weight and m.qweight both exist"]),
    "dtypes": (
        lambda t: {**t, "m.scales": t["m.scales"].double(), "m.qzeros": t["m.qzeros"].float(), "m.g_idx": t["m.g_idx"].short()},
        {},
        ["3 faults", "m.scales is F64, expected F16 or BF16 or F32", "m.qzeros is F32, expected I32", "m.g_idx is I16"],
    ),
    "codes of floats": (_with("qweight", lambda t: t.float()), {}, ["m.qweight is F32, expected I32"]),
    "shapes": (
        lambda t: {**t, "m.scales": t["m.scales"][:1], "m.qzeros": t["m.qzeros"].T, "m.g_idx": t["m.g_idx"][1:]},
        {},
        ["m.scales is [1, 32], expected [2, 32]", "m.qzeros is [4, 2], expected [2, 4]", "m.g_idx is [63], expected [64]"],
    ),
    "vector": (_with("qweight", lambda t: t.flatten()), {}, ["m.qweight is [256], expected a matrix"]),
    "empty": (_with("qweight", lambda t: t[:0]), {}, ["m.qweight is [0, 32], expected a matrix"]),
    "3 bits": (lambda t: t, {"bits": 3}, ["m.qweight is [8, 32]", "multiples of 3"]),
    "outputs of 3 bits": (
        lambda t: {**t, **named(_encode(40, 64, bits=3)[0])},
        {"bits": 3},
        ["m.qweight is [6, 40]", "columns in multiples of 32"],
    ),
    "group that does not divide": (lambda t: t, {"group_size": 48, "desc_act": True}, ["groups of 48", "32, 32"]),
    "other groups": (lambda t: t, {"group_size": 16}, ["m.scales is [2, 32], expected [4, 32]"]),
    "g_idx too large": (_with("g_idx", lambda t: t + 1), {}, ["got group 2", "groups 0 to 1"]),
    "g_idx negative": (_with("g_idx", lambda t: t - 1), {}, ["got group -1", "groups 0 to 1"]),
    "g_idx unequal": (_with("g_idx", lambda t: (torch.arange(64) >= 33).int()), {}, ["groups of 33, 31 inputs"]),
    "scale NaN": (_with("scales", lambda t: t.index_fill(0, torch.tensor([1]), float("nan"))), {}, ["m.scales", "NaN"]),
    "scale infinite": (_with("scales", lambda t: t + float("inf")), {}, ["m.scales", "infinity"]),
    "scales 0": (_with("scales", torch.zeros_like), {}, ["m.scales", "all 0"]),
    "group size": (lambda t: t, {"group_size": 0}, ["group_size", "got 0", "-1 or a positive integer"]),
    "group size of text": (lambda t: t, {"group_size": "32"}, ["group_size", "got '32'"]),
    "group size of -1.0": (lambda t: t, {"group_size": -1.0}, ["group_size", "got -1.0"]),
    "dynamic": (lambda t: t, {"dynamic": [3]}, ["'dynamic'", "[3]"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, tmp_path: Path) -> None:
    damage, settings, expected = FAULTS[fault]
    tensors = damage(named(_encode()[0]))
    message = refusal(store(tmp_path, tensors, {**_settings(), **settings}))
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"checkpoint_format": "marlin"}, ["'marlin'", "gptq, gptq_v2"]),
        ({"checkpoint_format": ["gptq"]}, ["['gptq']"]),
        ({"bits": 5}, ["bits", "got 5", "2, 3, 4, 8"]),
        ({"bits": None}, ["bits", "got None"]),
        ({"bits": 4.0}, ["bits", "got 4.0"]),
        ({"dynamic": {"x": {"bits": 6}}}, ["bits", "got 6"]),
        ({"dynamic": {str(size): {"group_size": size} for size in range(1, 100)}}, ["widths", "got 99"]),
    ],
)
def test_another_layout_is_refused_by_name(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    message = refusal(store(tmp_path, named(_encode()[0]), {**_settings(), **settings}), UnsupportedModel)
    assert all(part in message for part in ["GPTQ", *expected]), message


def test_faults_of_all_modules_are_listed(tmp_path: Path) -> None:
    parts, _ = _encode()
    tensors = {**named(parts, "a"), **named(parts, "b")}
    del tensors["a.scales"], tensors["b.qzeros"]
    message = refusal(store(tmp_path, tensors, _settings()), CheckpointError)
    assert "a.scales is missing" in message
    assert "b.qzeros is missing" in message


def test_a_scale_of_0_means_weights_of_0(tmp_path: Path) -> None:
    """Scales of tiny weights vanish in float16, and GPTQModel reads zeros there."""
    parts, expected = _encode(symmetric=False)
    parts["scales"][0, 5] = 0
    expected[5, :32] = 0
    check_meaning(Checkpoint.open(store(tmp_path, named(parts), _settings())).matrices["m.weight"], expected)
    parts["scales"][:, 5] = 0  # one output, which is read on its own too
    expected[5] = 0
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings())).matrices["m.weight"]
    assert not matrix.rows(5, 6).dequantize().any()
    check_meaning(matrix, expected)


def test_rows_do_not_share_memory_with_the_file(tmp_path: Path) -> None:
    parts, expected = _encode(1, 64, 32, bits=8)
    parts["scales"] = parts["scales"].float()
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings(8))).matrices["m.weight"]
    rows = matrix.rows(0, 1)
    assert isinstance(rows, GroupedRows)
    rows.codes_OI.zero_()
    rows.scales_OG.zero_()
    check_meaning(matrix, expected)
    assert np.isfinite(expected.numpy()).all()
