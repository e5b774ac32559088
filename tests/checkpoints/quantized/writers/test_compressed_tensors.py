"""compressed-tensors: the files are those of the library, to the byte; it, transformers and hasten read them.

Every kind was also loaded once with version 0.17 of the library, which vLLM 0.33 pins: the same weights and logits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from tests.compressed_checkpoints import quantize_modules
from tests.models.dense import dense_logits
from tests.written_checkpoints import (
    FP8_PER_TOKEN,
    FP8_STATIC,
    INT8_PER_TOKEN,
    INT8_STATIC,
    SpecOf,
    Written,
    floats,
    fp8_groups,
    integers,
    write_checkpoint,
)
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from hasten.checkpoints.quantized.writers.find import find_writer
from hasten.checkpoints.reader import Checkpoint
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, GroupedRows, StoredMatrix
from hasten.models.load import load_decoder
from hasten.ops.torch.backend import TorchOps

SCHEME = "compressed-tensors"
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
PROMPTS = ([5, 9, 80, 3, 3, 41], [7, 7, 90])


def ints(bits: int, group_size: int | None = 32, activations: ActivationSpec | None = None) -> QuantSpec:
    return integers(SCHEME, bits, group_size, activations)


def fp8(shares: str | tuple[int, int], activations: ActivationSpec | None = None) -> QuantSpec:
    return floats(SCHEME, shares, activations)


# Each with its format.
KINDS: dict[str, tuple[QuantSpec, str]] = {
    "w4a16": (ints(4), "pack-quantized"),
    "w4a16-channel": (ints(4, None), "pack-quantized"),
    "w8a16": (ints(8), "pack-quantized"),
    "w8a16-channel": (ints(8, None), "pack-quantized"),
    "w4a8": (ints(4, 32, INT8_PER_TOKEN), "pack-quantized"),
    "w4a8-channel": (ints(4, None, INT8_PER_TOKEN), "pack-quantized"),
    "w8a8-groups": (ints(8, 32, INT8_PER_TOKEN), "pack-quantized"),
    "w8a8": (ints(8, None, INT8_PER_TOKEN), "int-quantized"),
    "w8a8-static": (ints(8, None, INT8_STATIC), "int-quantized"),
    "fp8-dynamic": (fp8("channel", FP8_PER_TOKEN), "float-quantized"),
    "fp8-tensor": (fp8("tensor", FP8_PER_TOKEN), "float-quantized"),
    "fp8-static": (fp8("tensor", FP8_STATIC), "float-quantized"),
    "fp8-channel-static": (fp8("channel", FP8_STATIC), "float-quantized"),
    "fp8-block": (fp8((16, 32), fp8_groups(32)), "float-quantized"),
    "fp8-weights": (fp8("channel"), "naive-quantized"),
    "fp8-weights-tensor": (fp8("tensor"), "naive-quantized"),
    "fp8-weights-block": (fp8((16, 32)), "naive-quantized"),
}
MIXES: dict[str, dict[str, QuantSpec | None]] = {  # by a part of the name
    "bits": {"layers.0": ints(8, None), "layers.1.mlp": None, "proj": ints(4)},
    "formats": {"down_proj": fp8("channel"), "layers.1": ints(8), "lm_head": ints(8, None), "proj": ints(4)},
    "activations": {"mlp": ints(8, None, INT8_PER_TOKEN), "layers.1": fp8("tensor", FP8_STATIC), "proj": ints(4)},
}


def everywhere(spec: QuantSpec) -> SpecOf:
    return lambda module: None if module == "lm_head" else spec


def by_part(specs: dict[str, QuantSpec | None]) -> SpecOf:
    return lambda module: next((spec for part, spec in specs.items() if part in module), None)


def settings_of(written: Written) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((written.folder / "config.json").read_text())["quantization_config"]
    return settings


def load(folder: Path, **how: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):  # "the config of the checkpoint will be used"
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()


@torch.inference_mode()
def transformers_logits(model: Any) -> Tensor:
    return torch.cat([model(torch.tensor([prompt])).logits[0].float() for prompt in PROMPTS])


def hasten_logits(folder: Path) -> Tensor:
    """Return the logits of the dequantised weights in float32."""
    with torch.inference_mode():
        return dense_logits(load_decoder(folder, dtype="float32", ops=TorchOps()).decoder, PROMPTS)


def check_rows(matrix: StoredMatrix, written: Written, module: str) -> None:
    """Compare what hasten reads with what the writer was given."""
    rows, given = matrix.rows(0, matrix.shape[0]), written.rows[module]
    assert matrix.spec == written.specs[module]
    if isinstance(given, Fp8Rows):
        assert isinstance(rows, Fp8Rows)
        assert torch.equal(rows.values_OI.view(torch.uint8), given.values_OI.view(torch.uint8))
        assert (rows.block_size, rows.scales_OC.tolist()) == (given.block_size, given.scales_OC.tolist())
    else:
        assert isinstance(rows, GroupedRows)
        assert torch.equal(rows.codes_OI, given.codes_OI)
        assert (rows.zeros, rows.group_size) == (given.zeros, given.group_size)
        assert torch.equal(rows.scales_OG, given.scales_OG)


@pytest.mark.parametrize("kind", [*KINDS, *MIXES])
def test_files_are_those_of_the_library(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    model_folder = source("llama-mqa-bias" if kind == "w4a16" else "llama-gqa")
    spec_of = everywhere(KINDS[kind][0]) if kind in KINDS else by_part(MIXES[kind])
    written = write_checkpoint(tmp_path / "own", model_folder, SCHEME, spec_of)
    settings = settings_of(written)
    model = load(model_folder)
    quantize_modules(model, settings["config_groups"], settings["ignore"])
    theirs = ModelCompressor.from_pretrained_model(model).quantization_config
    assert sorted(settings["ignore"]) == sorted([*theirs.ignore, "model.embed_tokens"])  # an embedding is no target anyway
    own = QuantizationConfig.model_validate({**settings, "ignore": theirs.ignore})
    assert _sorted_groups(own) == _sorted_groups(theirs)
    assert own.model_copy(update={"config_groups": {}}) == theirs.model_copy(update={"config_groups": {}})
    tensors, expected = load_file(tmp_path / "own" / "model.safetensors"), dict(model.state_dict())
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(tensors[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def _sorted_groups(config: QuantizationConfig) -> list[dict[str, Any]]:
    groups = [group.model_dump() for group in config.config_groups.values()]
    return sorted(({**group, "targets": sorted(group["targets"])} for group in groups), key=lambda group: group["targets"])


@pytest.mark.parametrize("kind", [*KINDS, *MIXES])
def test_hasten_reads_what_was_written(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    dtype = list(DTYPES)[[*KINDS, *MIXES].index(kind) % len(DTYPES)]
    spec_of = everywhere(KINDS[kind][0]) if kind in KINDS else by_part(MIXES[kind])
    written = write_checkpoint(tmp_path / "own", source("qwen3-tied-bias"), SCHEME, spec_of, dtype=dtype)
    checkpoint = Checkpoint.open(written.folder)
    assert checkpoint.matrices.keys() == written.weights.keys()
    for module in written.rows:
        check_rows(checkpoint.matrices[f"{module}.weight"], written, module)
        scales = checkpoint.files.entries[f"{module}.weight_scale"]
        assert scales.dtype == DTYPES[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_weights(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    """Weight-only with ``dequantize``; by default the library also quantises activations as the settings say."""
    written = write_checkpoint(tmp_path / "own", source("qwen3-gqa"), SCHEME, everywhere(KINDS[kind][0]))
    model = load(written.folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    parameters = dict(model.named_parameters())
    assert len(written.rows) == 21
    assert all(torch.equal(parameters[name], weight) for name, weight in written.weights.items())
    expected, found = transformers_logits(model), hasten_logits(written.folder)
    assert (found - expected).abs().max() < 1e-3
    by_default = load(written.folder)
    difference = float((transformers_logits(by_default) - expected).abs().max())
    assert all(torch.equal(dict(by_default.named_parameters())[name], weight) for name, weight in written.weights.items())
    assert difference > 0.01 if KINDS[kind][0].activations is not None else difference == 0


@pytest.mark.parametrize("kind", MIXES)
def test_transformers_reads_mixed_schemes(kind: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "own", source("llama-gqa"), SCHEME, by_part(MIXES[kind]))
    assert len(set(written.specs.values())) == len(settings_of(written)["config_groups"]) > 1
    model = load(written.folder)
    logits = transformers_logits(model)  # the library decodes weights at the first call
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], weight) for name, weight in written.weights.items())
    if kind != "activations":
        assert (hasten_logits(written.folder) - logits).abs().max() < 1e-3


def test_a_scheme_for_all_layers_targets_linear() -> None:
    """A tied ``lm_head`` has no tensor, and the library would quantise it, too."""
    for kind, (spec, form) in KINDS.items():
        settings = find_writer(SCHEME).settings({"a.0.b": spec, "a.1.b": spec}, ["a.2.b"])
        (group,) = settings["config_groups"].values()
        assert (group["targets"], settings["format"], group["format"]) == (["Linear"], form, form), kind
        assert settings["ignore"] == ["a.2.b", "lm_head"]
    mixed = find_writer(SCHEME).settings({"a.0.b": ints(4), "lm_head": fp8("channel"), "a.1.b": ints(4)}, ["a.2.b"])
    groups = [(group["targets"], group["format"]) for group in mixed["config_groups"].values()]
    assert groups == [(["a.0.b", "a.1.b"], "pack-quantized"), (["lm_head"], "naive-quantized")]
    assert (mixed["format"], mixed["ignore"]) == ("mixed-precision", ["a.2.b"])


@pytest.mark.parametrize(
    "spec, fault",
    [
        (ints(3), "4 or 8 bits, not 3"),
        (replace(ints(4), zero=None), "without zero points: current transformers does not load packed ones"),
        (replace(ints(8), granularity="tensor"), "not per tensor"),
        (replace(ints(4), reorders_inputs=True), "has no order of inputs"),
        (ints(4, 32, FP8_PER_TOKEN), "int8 activations for integer weights, not fp8"),
        (ints(4, None, INT8_STATIC), "static int8 activations for 8-bit weights with one scale per output only"),
        (ints(8, 32, INT8_STATIC), "static int8 activations for 8-bit weights with one scale per output only"),
        (ints(8, None, replace(INT8_PER_TOKEN, granularity="group", group_size=32)), "per token of dynamic int8"),
        (replace(fp8("channel"), bits=4), "floats of 8 bits, not 4"),
        (replace(fp8("channel"), granularity="group", group_size=32), "not per group"),
        (fp8("channel", INT8_PER_TOKEN), "FP8 activations for FP8 weights, not int8"),
        (fp8("channel", fp8_groups(32)), "per token, or static ones per tensor"),
        (fp8((32, 32), FP8_PER_TOKEN), "in groups of 32 for blocks"),
        (fp8((32, 32), FP8_STATIC), "in groups of 32 for blocks"),
    ],
)
def test_schemes_that_others_do_not_read_are_faults(spec: QuantSpec, fault: str) -> None:
    (found,) = find_writer(SCHEME).find_faults(spec, {"up": (64, 64)})
    assert found.startswith("compressed-tensors ") and fault in found


def test_every_matrix_that_does_not_fit_is_a_fault() -> None:
    shapes = {"up": (96, 64), "down": (64, 96), "out": (64, 40)}
    writer = find_writer(SCHEME)
    assert writer.find_faults(ints(4, 64), shapes) == [
        "down has 96 inputs, no multiple of 64",
        "out has 40 inputs, no multiple of 64",
    ]
    assert writer.find_faults(fp8((64, 32)), shapes) == [
        "up has 96 outputs and 64 inputs, no multiples of 64 and 32",
        "out has 64 outputs and 40 inputs, no multiples of 64 and 32",
    ]
    assert not writer.find_faults(ints(4, None), shapes)
    assert len(writer.find_faults(replace(ints(5, 64), zero=None), shapes)) == 4
