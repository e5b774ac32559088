"""GPTQ: the tensors are those of an encoder in numpy, to the byte, and hasten reads what was written.

GPTQModel 7.6 was once given every width and group size of this file, mixed widths and a quantised ``lm_head``: the same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.quantized_checkpoints import encode_gptq, input_groups
from tests.written_checkpoints import INT8_PER_TOKEN, floats, integers, write_checkpoint
from transformers import GPTQConfig

from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.checkpoints.reader import Checkpoint
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows

WRITER = find_writer("gptq")


def gptq(bits: int, group_size: int | None = 32) -> QuantSpec:
    return integers("GPTQ", bits, group_size)


@pytest.mark.parametrize("group_size", [32, 128, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_files_are_those_of_an_independent_encoder(
    bits: int, group_size: int | None, source: Callable[[str], Path], tmp_path: Path
) -> None:
    model = source("wide" if group_size == 128 else "qwen3-tied-bias")
    spec = gptq(bits, group_size)
    written = write_checkpoint(tmp_path / "own", model, "gptq", lambda name: spec if "layers" in name else None)
    tensors, dense = load_file(written.folder / "model.safetensors"), load_file(model / "model.safetensors")
    checkpoint = Checkpoint.open(written.folder)
    for name in written.weights:
        weights, module = dense.pop(name), name.removesuffix(".weight")
        groups = input_groups(weights.shape[1], group_size or -1)
        expected, meaning = encode_gptq(weights, bits=bits, groups=groups, symmetric=True, version=1)
        for part, tensor in expected.items():
            found = tensors.pop(f"{module}.{part}")
            assert found.dtype == tensor.dtype and torch.equal(found, tensor), (module, part)
        matrix, given = checkpoint.matrices[name], written.rows[module]
        rows = matrix.rows(0, matrix.shape[0])
        assert matrix.spec == spec
        assert isinstance(rows, GroupedRows) and isinstance(given, GroupedRows)
        assert torch.equal(rows.codes_OI, given.codes_OI) and torch.equal(rows.scales_OG, given.scales_OG)
        assert torch.equal(rows.dequantize(), meaning) and rows.zeros == given.zeros
    assert tensors.keys() == dense.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in dense.items())


def test_settings_name_the_scheme() -> None:
    settings = WRITER.settings({"model.layers.0.mlp.up_proj": gptq(4, 128)}, ["lm_head", "model.embed_tokens"])
    assert settings == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
    parsed = GPTQConfig.from_dict(settings)
    assert (parsed.bits, parsed.group_size, parsed.desc_act, parsed.sym, parsed.format) == (4, 128, False, True, "gptq")
    assert WRITER.settings({"lm_head": gptq(8, None)}, [])["lm_head"] is True
    assert WRITER.settings({"lm_head": gptq(8, None)}, [])["group_size"] == -1
    most = WRITER.settings({"a": gptq(8), "b": gptq(4), "c": gptq(4)}, [])
    assert most["bits"] == 4 and most["dynamic"] == {"+:a$": {"bits": 8, "group_size": 32}}


def test_rules_give_modules_other_widths_or_none(source: Callable[[str], Path], tmp_path: Path) -> None:
    """A rule applies if its pattern matches the beginning of a name, the first one first; vLLM asks for the fused names."""
    specs = {"layers.0.self_attn": gptq(8, None), "layers.1.mlp": None, "lm_head": None, "proj": gptq(3)}
    written = write_checkpoint(
        tmp_path / "own",
        source("qwen3-tied-bias"),
        "gptq",
        lambda name: next((specs[part] for part in specs if part in name), None),
    )
    settings = json.loads((written.folder / "config.json").read_text())["quantization_config"]
    assert (settings["bits"], settings["group_size"]) == (3, 32)

    def width(name: str) -> tuple[int, int] | None:
        for pattern, values in settings["dynamic"].items():
            if re.match(pattern[2:], name):
                return (values["bits"], values["group_size"]) if pattern[:2] == "+:" else None
        return 3, 32

    fused = {"self_attn.qkv_proj": "self_attn.q_proj", "mlp.gate_up_proj": "mlp.up_proj"}
    for layer in range(3):
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", *fused):
            spec = written.specs.get(f"model.layers.{layer}.{fused.get(part, part)}")
            assert width(f"model.layers.{layer}.{part}") == (spec and (spec.bits, spec.group_size or -1)), (layer, part)
            assert width(f"model.layers.1{layer}.{part}") == width(f"model.layers.{layer}.{part}.more") == (3, 32)
    checkpoint = Checkpoint.open(written.folder)
    assert {name: matrix.spec for name, matrix in checkpoint.matrices.items()} == {
        f"{module}.weight": spec for module, spec in written.specs.items()
    }


@pytest.mark.parametrize(
    "spec, fault",
    [
        (gptq(5), "2, 3, 4 or 8 bits, not 5"),
        (replace(gptq(4), zero=None), "without zero points: libraries disagree on a zero point of 0"),
        (replace(gptq(4), granularity="tensor"), "not per tensor"),
        (replace(gptq(4), reorders_inputs=True), "without an order of inputs"),
        (integers("GPTQ", 4, 32, INT8_PER_TOKEN), "does not quantise activations"),
        (floats("GPTQ", "channel"), "integers, not floats"),
    ],
)
def test_schemes_that_it_cannot_store_are_faults(spec: QuantSpec, fault: str) -> None:
    (found,) = WRITER.find_faults(spec, {"up": (64, 64)})
    assert found.startswith("gptq ") and fault in found


def test_every_matrix_that_does_not_fit_is_a_fault() -> None:
    shapes = {"up": (96, 64), "down": (64, 96), "out": (36, 72)}
    assert WRITER.find_faults(gptq(4, 64), shapes) == [
        "down has 96 inputs, no multiple of 64",
        "out has 72 inputs, no multiple of 64",
        "out has 36 outputs, which do not fill words of 32 bits",
    ]
    assert WRITER.find_faults(gptq(3, None), shapes) == [
        "out has 72 inputs, which do not fill words of 32 bits",
        "out has 36 outputs, which do not fill words of 32 bits",
    ]
    assert not WRITER.find_faults(gptq(8, None), shapes)
