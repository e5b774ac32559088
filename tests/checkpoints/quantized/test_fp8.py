"""FP8: equal bit for bit to transformers, to compressed-tensors where a grid does not divide, and to the numbers' definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from tests.checkpoints.quantized.stored import check_meaning, named, refusal, store
from tests.quantized_checkpoints import Encoded, e4m3_values, encode_fp8, write_fp8
from tests.tiny_models import tiny_checkpoint
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import UnsupportedModel
from hasten.layers.formats.quant_spec import ActivationSpec
from hasten.layers.formats.stored_matrix import Fp8Rows

SCALE_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.uint8]
SHAPES = [(64, 96), (40, 72), (33, 100), (5, 7), (1, 1), (130, 31)]
BLOCKS = [(32, 32), (16, 64), (128, 128), (7, 5), (1, 32), (64, 1)]


def _settings(block: object = (32, 32), **others: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block, **others}


def _encode(shape: tuple[int, int] = (64, 96), block: tuple[int, int] | str = (32, 32), **how: Any) -> Encoded:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0] * shape[1]))
    return encode_fp8(weights, block=block, **how)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_exact_for_every_shape(block: tuple[int, int], scale_dtype: torch.dtype, tmp_path: Path) -> None:
    tensors, expected = {}, {}
    for shape in SHAPES:
        module = f"m{shape[0]}"
        parts, expected[module] = _encode(shape, block, scale_dtype=scale_dtype)
        tensors |= named(parts, module)
        if scale_dtype != torch.uint8:
            oracle = FP8BlockDequantizer(weight_block_size=block, dtype=torch.float32)
            read = oracle.process({"m.weight": parts["weight"], "m.weight_scale_inv": parts["weight_scale_inv"].float()})
            assert torch.equal(read["m.weight"], expected[module])
        if shape[0] % block[0] == 0 and shape[1] % block[1] == 0:
            read = Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"], torch.float32)
            assert torch.equal(read, expected[module])
    checkpoint = Checkpoint.open(store(tmp_path, tensors, _settings(block)))
    assert len(checkpoint.matrices) == len(SHAPES)
    for module, weights in expected.items():
        matrix = checkpoint.matrices[f"{module}.weight"]
        check_meaning(matrix, weights)
        one = tensors[f"{module}.weight_scale_inv"].numel() == 1
        rows_alone = block[0] == 1 and block[1] >= weights.shape[1]
        assert matrix.spec.granularity == ("tensor" if one else "channel" if rows_alone else "block")
        assert matrix.nbytes == sum(tensors[part].nbytes for part in matrix.parts)
        assert matrix.input_order() is None


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize("size", [[], [1], [1, 1], [40], [40, 1]], ids=str)
@pytest.mark.parametrize("block", [None, "absent"])
def test_scales_of_tensors_and_channels_are_exact(size: list[int], name: str, block: object, tmp_path: Path) -> None:
    granularity = "channel" if 40 in size else "tensor"
    parts, expected = _encode((40, 72), granularity)
    parts = {"weight": parts["weight"], name: parts["weight_scale_inv"].reshape(size)}
    settings = _settings(block)
    if block == "absent":
        del settings["weight_block_size"]
    matrix = Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"]
    check_meaning(matrix, expected)
    assert (matrix.spec.granularity, matrix.spec.block) == (granularity, None)
    assert matrix.spec.activations == ActivationSpec("float", 8, dynamic=True, granularity="token")


def test_a_block_is_that_of_the_configuration(tmp_path: Path) -> None:
    """192 outputs in two blocks are 128 and 64: rows over rows of scales would say 96."""
    parts, expected = _encode((192, 96), (128, 128))
    settings = _settings((128, 128))
    matrix = Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"]
    check_meaning(matrix, expected)
    assert (matrix.spec.granularity, matrix.spec.block) == ("block", (128, 128))
    assert matrix.spec.activations == ActivationSpec("float", 8, dynamic=True, granularity="group", group_size=128)
    del settings["weight_block_size"]  # transformers' default
    check_meaning(Checkpoint.open(store(tmp_path, named(parts), settings)).matrices["m.weight"], expected)


def test_every_number_is_exact(tmp_path: Path) -> None:
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8).view(2, 127)
    scale = torch.tensor(0.1)
    tensors = {"m.weight": codes.view(torch.float8_e4m3fn), "m.weight_scale": scale}
    matrix = Checkpoint.open(store(tmp_path, tensors, _settings(None))).matrices["m.weight"]
    check_meaning(matrix, torch.from_numpy(e4m3_values())[codes.long()] * scale)


def test_every_exponent_is_exact(tmp_path: Path) -> None:
    """Down to 2 ** -127, which float32 holds as a subnormal number."""
    exponents = torch.arange(255, dtype=torch.uint8).view(255, 1)
    tensors = {"m.weight": torch.ones(255, 3).to(torch.float8_e4m3fn), "m.weight_scale_inv": exponents}
    matrix = Checkpoint.open(store(tmp_path, tensors, _settings(None))).matrices["m.weight"]
    expected = torch.tensor([[2.0 ** (exponent - 127)] for exponent in range(255)], dtype=torch.float64)
    check_meaning(matrix, expected.to(torch.float32).expand(255, 3))


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", ["llama-mqa-bias", "qwen3-tied-bias"])
def test_a_checkpoint_equals_that_of_transformers(name: str, static: bool, tmp_path: Path) -> None:
    source = tiny_checkpoint(name, tmp_path)
    expected = write_fp8(tmp_path / "fp8", source, block=(16, 32), static=static)
    checkpoint, plain = Checkpoint.open(tmp_path / "fp8"), Checkpoint.open(source)
    for weight, weights in expected.items():
        check_meaning(checkpoint.matrices[weight], weights)
    assert set(checkpoint.tensors) == set(plain.tensors) - set(expected)
    spec = checkpoint.matrices["model.layers.0.mlp.up_proj.weight"].spec
    assert spec.activations is not None
    assert spec.activations.dynamic is not static
    if not static:  # transformers has no place for an input_scale here
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", dtype=torch.float32).state_dict()
        assert all(torch.equal(model[weight], weights) for weight, weights in expected.items())


def test_modules_without_scales_stay_plain(tmp_path: Path) -> None:
    parts, expected = _encode()
    tensors = {**named(parts), "lm_head.weight": torch.ones(3, 4), "norm.weight": torch.ones(4), "m.bias": torch.ones(64)}
    settings = _settings(modules_to_not_convert=["m"], ignored_layers=3)  # only tensors count
    checkpoint = Checkpoint.open(store(tmp_path, tensors, settings))
    check_meaning(checkpoint.matrices["m.weight"], expected)
    assert set(checkpoint.tensors) == {"lm_head.weight", "norm.weight", "m.bias"}


@pytest.mark.parametrize("name", ["input_scale", "activation_scale"])
def test_scales_of_inputs_are_parts(name: str, tmp_path: Path) -> None:
    parts, expected = _encode()
    tensors = named({**parts, name: torch.tensor([0.25], dtype=torch.bfloat16)})
    checkpoint = Checkpoint.open(store(tmp_path, tensors, _settings(activation_scheme="static")))
    matrix = checkpoint.matrices["m.weight"]
    check_meaning(matrix, expected)
    assert set(matrix.parts) == set(tensors)
    assert not checkpoint.tensors
    assert matrix.spec.activations == ActivationSpec("float", 8, dynamic=False, granularity="tensor")


def _set(part: str, index: Any, code: int) -> Any:
    return lambda t: t[f"m.{part}"].view(torch.uint8).__setitem__(index, code)


FAULTS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "scale": (lambda t: t.pop("m.weight_scale_inv"), {}, ["1 fault", "m.weight_scale_inv is missing"]),
    "weight": (lambda t: t.pop("m.weight"), {}, ["m.weight is missing"]),
    "input scale": (lambda t: t, {"activation_scheme": "static"}, ["m.input_scale is missing"]),
    "two scales": (lambda t: t.update({"m.weight_scale": torch.ones(1)}), {}, ["both weight_scale_inv and weight_scale"]),
    "input scales": (lambda t: t.update({"m.input_scale": torch.ones(2)}), {}, ["m.input_scale is [2], expected one number"]),
    "weight of bytes": (lambda t: t.update({"m.weight": t["m.weight"].view(torch.int8)}), {}, ["m.weight is I8, expected F8_E4M3"]),
    "e5m2": (lambda t: t.update({"m.weight": t["m.weight"].view(torch.float8_e5m2)}), {}, ["m.weight is F8_E5M2"]),
    "several": (
        lambda t: t.update({"m.weight": t["m.weight"].view(torch.int8), "m.weight_scale_inv": torch.ones(2, 2).double()}),
        {},
        ["3 faults", "m.weight is I8", "m.weight_scale_inv is F64", "is [2, 2], expected [2, 3] for blocks of 32 x 32"],
    ),
    "vector": (lambda t: t.update({"m.weight": t["m.weight"].flatten()}), {}, ["m.weight is [6144], expected a matrix"]),
    "empty": (lambda t: t.update({"m.weight": t["m.weight"][:0]}), {}, ["m.weight is [0, 96], expected a matrix"]),
    "other blocks": (
        lambda t: t,
        {"weight_block_size": [64, 64]},
        ["[2, 3], expected [1, 2] for blocks of 64 x 64, [] or [64, 1]"],
    ),
    "no blocks": (lambda t: t, {"weight_block_size": None}, ["is [2, 3], expected [] or [64, 1]"]),
    "NaN": (_set("weight", (63, 95), 0x7F), {}, ["m.weight", "holds NaN"]),
    "negative NaN": (_set("weight", (0, 0), 0xFF), {}, ["m.weight", "holds NaN"]),
    "scale NaN": (lambda t: t["m.weight_scale_inv"].fill_(float("nan")), {}, ["m.weight_scale_inv", "NaN"]),
    "exponent NaN": (
        lambda t: t.update({"m.weight_scale_inv": torch.full((2, 3), 255, dtype=torch.uint8)}),
        {},
        ["m.weight_scale_inv", "NaN"],
    ),
    "scales 0": (lambda t: t["m.weight_scale_inv"].zero_(), {}, ["m.weight_scale_inv", "all 0"]),
    "scale 0": (
        lambda t: t["m.weight_scale_inv"].__setitem__((1, 2), 0),
        {},
        ["m.weight", "scale of 0 for weights that are"],
    ),
    "input scale 0": (
        lambda t: t.update({"m.input_scale": torch.zeros(1)}),
        {},
        ["m.input_scale", "no positive", "got 0.0"],
    ),
    "block": (lambda t: t, {"weight_block_size": [32]}, ["weight_block_size", "[32]", "two positive integers"]),
    "block of 0": (lambda t: t, {"weight_block_size": [0, 32]}, ["weight_block_size", "[0, 32]"]),
    "block of text": (lambda t: t, {"weight_block_size": "32"}, ["weight_block_size", "'32'"]),
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
        ({"fmt": "e5m2"}, ["fmt", "'e5m2'", "e4m3"]),
        ({"expert_dtype": "fp4"}, ["expert_dtype", "'fp4'"]),
        ({"activation_scheme": "token"}, ["activation_scheme", "'token'", "dynamic, static"]),
    ],
)
def test_another_layout_is_refused_by_name(settings: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    message = refusal(store(tmp_path, named(_encode()[0]), {**_settings(), **settings}), UnsupportedModel)
    assert all(part in message for part in ["FP8", *expected]), message


def test_a_scale_of_0_means_weights_of_0(tmp_path: Path) -> None:
    """DeepSeek's scale of a block of zeros is 0, and the codes are 0."""
    parts, expected = _encode()
    parts["weight"].view(torch.uint8)[32:, 64:] = 0x80
    parts["weight"].view(torch.uint8)[32:, 70:] = 0
    parts["weight_scale_inv"][1, 2] = 0
    expected[32:, 64:] = 0
    check_meaning(Checkpoint.open(store(tmp_path, named(parts), _settings())).matrices["m.weight"], expected)


def test_a_large_block_takes_no_more_memory_than_a_row(tmp_path: Path) -> None:
    parts, expected = _encode(block="tensor")
    parts["weight_scale_inv"] = parts["weight_scale_inv"].reshape(1, 1).expand(32, 1)
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings([2, 2**31 - 1]))).matrices["m.weight"]
    rows = matrix.rows(0, 64)
    assert isinstance(rows, Fp8Rows)
    assert rows.block_size == 96
    check_meaning(matrix, expected)


def test_rows_do_not_share_memory_with_the_file(tmp_path: Path) -> None:
    parts, expected = _encode(block="channel")
    matrix = Checkpoint.open(store(tmp_path, named(parts), _settings(None))).matrices["m.weight"]
    rows = matrix.rows(0, 64)
    assert isinstance(rows, Fp8Rows)
    rows.values_OI.view(torch.uint8).zero_()
    rows.scales_OC.zero_()
    check_meaning(matrix, expected)
