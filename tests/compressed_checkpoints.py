"""Checkpoints that the compressed-tensors library writes, and what it decodes from them: the oracle of their readers.

The library quantises, packs and saves as llm-compressor does. Only the ranges of the weights are measured here, which decide how
good the scales are and not what is stored.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import compressed_tensors
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, apply_quantization_config
from compressed_tensors.quantization.lifecycle import forward
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

from hasten.checkpoints.reader import Checkpoint
from hasten.core.errors import CheckpointError
from hasten.layers.formats.stored_matrix import StoredMatrix, dequantize

Change = Callable[[dict[str, Tensor]], None]

INT8_PER_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
FP8_PER_TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def integers(bits: int, strategy: str = "group", group_size: int | None = 32, **others: Any) -> dict[str, Any]:
    """Return the settings of integer weights."""
    group = {"group_size": group_size} if strategy == "group" else {}
    return {"num_bits": bits, "type": "int", "strategy": strategy, **group, **others}


def floats(strategy: str, bits: int = 8, **others: Any) -> dict[str, Any]:
    """Return the settings of FP8 or FP4 weights."""
    return {"num_bits": bits, "type": "float", "strategy": strategy, **others}


# Format, weights and input activations of the checkpoints that are written in practice.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "w4a16": ("pack-quantized", integers(4), None),
    "w4a16-offsets": ("pack-quantized", integers(4, symmetric=False), None),
    "w8a16-channel": ("pack-quantized", integers(8, "channel"), None),
    "w3a16": ("pack-quantized", integers(3), None),
    "w8a8": ("int-quantized", integers(8, "channel"), INT8_PER_TOKEN),
    "w8a8-static": ("int-quantized", integers(8, "channel"), {"num_bits": 8, "type": "int", "strategy": "tensor"}),
    "w8a8-offsets": ("int-quantized", integers(8, "channel", symmetric=False), INT8_PER_TOKEN),
    "w4a8": ("int-quantized", integers(4), INT8_PER_TOKEN),
    "fp8": ("float-quantized", floats("tensor"), floats("tensor")),
    "fp8-dynamic": ("float-quantized", floats("channel"), FP8_PER_TOKEN),
    "fp8-block": (
        "float-quantized",
        floats("block", block_structure=[32, 32]),
        floats("group", group_size=32, dynamic=True),
    ),
    "fp8-weights": ("naive-quantized", floats("channel"), None),
    "mxfp8": ("mxfp8-quantized", floats("group", group_size=32, scale_dtype="torch.uint8"), None),
    "mxfp4": ("mxfp4-pack-quantized", floats("group", 4, group_size=32, scale_dtype="torch.uint8"), None),
    "nvfp4": (
        "nvfp4-pack-quantized",
        floats("tensor_group", 4, group_size=16, scale_dtype="torch.float8_e4m3fn"),
        floats("tensor_group", 4, group_size=16, dynamic="local", scale_dtype="torch.float8_e4m3fn"),
    ),
}

MIXED = {
    "group_0": {"targets": ["Linear"], "weights": integers(4, symmetric=False), "format": "pack-quantized"},
    "group_1": {"targets": ["re:.*down_proj", "layers.1.up"], "weights": floats("channel"), "format": "float-quantized"},
    "group_2": {"targets": ["re:.*[.]1[.].*"], "weights": integers(8, "channel"), "format": "pack-quantized"},
    "group_3": {"targets": ["re:layers.2[.].*"], "weights": KINDS["nvfp4"][1], "format": "nvfp4-pack-quantized"},
}
MIXED_NAMES = [f"layers.{layer}.{name}" for layer in range(3) for name in ("up", "down_proj", "q")]


def write_compressed(
    folder: Path,
    source: Path,
    kind: str = "w4a16",
    *,
    dtype: torch.dtype = torch.float32,
    ignore: Sequence[str] = ("lm_head",),
) -> dict[str, Tensor]:
    """Quantise the model of ``source`` into ``folder``, and return its float32 weights by name."""
    form, weights, inputs = KINDS[kind]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    quantized = quantize_modules(model, {"group_0": group}, ignore)
    save_compressed(model, folder)
    return quantized


def quantize_modules(model: nn.Module, groups: Mapping[str, Mapping[str, Any]], ignore: Sequence[str] = ()) -> dict[str, Tensor]:
    """Replace weights by what the library stores. Return the float32 weights that it decodes, by name."""
    schemes = {name: QuantizationScheme(**group) for name, group in groups.items()}
    with warnings.catch_warnings(action="ignore"):
        apply_quantization_config(model, QuantizationConfig(config_groups=schemes, ignore=list(ignore)))
    modules = {name: module for name, module in model.named_modules() if hasattr(module, "quantization_scheme")}
    for module in modules.values():
        _calibrate(module)
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    return {f"{name}.weight": decompress(module) for name, module in modules.items()}


def save_compressed(model: nn.Module, folder: Path) -> None:
    """Write what ``quantize_modules`` left, with its configuration."""
    model.save_pretrained(folder)
    ModelCompressor.from_pretrained_model(model).update_config(str(folder))


def decompress(module: nn.Module) -> Tensor:
    """Return the float32 weight that the library decodes from a compressed module."""
    scheme, state = module.quantization_scheme, {name: value.detach() for name, value in module.named_parameters()}
    state |= dict(module.named_buffers())
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    if scheme.weights.num_bits == 4 and scheme.weights.type == "float":
        # The library decodes FP4 into bfloat16. These are its steps in float32.
        packed, scale = state["weight_packed"], compressor._decompress_scale(state["weight_scale"], torch.float32)
        numbers = unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], dtype=torch.float32)
        options = {"args": scheme.weights, "global_scale": state.get("weight_global_scale"), "dtype": torch.float32}
        return forward.dequantize(numbers, scale, **options)
    zero_point = state.get("weight_zero_point")
    if zero_point is not None and zero_point.dtype == torch.int32 and len(zero_point) == 1:
        state["weight_zero_point"] = zero_point.repeat(2, 1)  # the library cannot unpack one row of words, and cuts off the second
    if state["weight_scale"].is_floating_point():
        state["weight_scale"] = state["weight_scale"].float()
    return compressor.decompress(state, scheme)["weight"].float()


def _calibrate(module: nn.Module) -> None:
    """Set scales and zero points by the smallest and the largest weight that share them."""
    args, weight = module.quantization_scheme.weights, module.weight.detach().float()
    low, high = weight_ranges(weight, args)
    global_scale = getattr(module, "weight_global_scale", None)
    if global_scale is not None:
        global_scale.data.copy_(generate_gparam(weight.min(), weight.max()))
    scale, zero_point = calculate_qparams(low, high, args, global_scale)
    module.weight_scale.data = scale.to(module.weight_scale.dtype)
    if getattr(module, "weight_zero_point", None) is not None:
        module.weight_zero_point.data = zero_point.to(module.weight_zero_point.dtype)
    for name in ("input_scale", "input_global_scale"):
        if getattr(module, name, None) is not None:
            getattr(module, name).data.fill_(0.05)


def weight_ranges(weight: Tensor, args: QuantizationArgs) -> tuple[Tensor, Tensor]:
    """Return minima and maxima in the shape of the scales."""
    rows, columns = weight.shape
    if args.strategy == "tensor":
        tiles = weight.reshape(1, -1)
        return tiles.amin(-1), tiles.amax(-1)
    height, width = {
        "channel": (1, columns),
        "group": (1, args.group_size),
        "tensor_group": (1, args.group_size),
        "block": args.block_structure,
    }[args.strategy]
    padded = pad(weight, (0, -columns % width, 0, -rows % height))
    tiles = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
    return tiles.amin((1, 3)), tiles.amax((1, 3))


class Linears(nn.Module):
    """Linear layers by name, with random weights."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(len(shapes))
        for name, (num_outputs, num_inputs) in shapes.items():
            layer = nn.Linear(num_inputs, num_outputs, bias=False, dtype=dtype)
            layer.weight = nn.Parameter(torch.randn(num_outputs, num_inputs, generator=draw).to(dtype), requires_grad=False)
            self._insert(name, layer)

    def _insert(self, name: str, layer: nn.Module) -> None:
        parent: nn.Module = self
        *parents, last = name.split(".")
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, layer)


def write_linears(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    weights: Mapping[str, Any],
    form: str,
    *,
    inputs: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Write linear layers that the library compressed. Return its float32 weights."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    return write_linear_groups(folder, shapes, {"group_0": group}, form, dtype=dtype)


def write_linear_groups(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    groups: Mapping[str, Mapping[str, Any]],
    form: str,
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    model = Linears(shapes, dtype)
    decoded = quantize_modules(model, groups)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    version = {"version": compressed_tensors.__version__, "quantization_status": "compressed"}
    settings = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, **version}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    return decoded


def change_settings(folder: Path, **changes: Any) -> None:
    """Change keys of the ``quantization_config``; ``weights`` and ``inputs`` update those of the first group."""
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"]
    group = next(iter(settings["config_groups"].values()), {})
    group.get("weights", {}).update(changes.pop("weights", {}))
    if "inputs" in changes:
        group["input_activations"] = changes.pop("inputs")
    group.update(changes.pop("group", {}))
    settings.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change: Change) -> None:
    """Let ``change`` edit the tensors of the file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def open_error(folder: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        Checkpoint.open(folder)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


def weight_of(matrix: StoredMatrix) -> Tensor:
    """Return all of a matrix that hasten read, float32."""
    return dequantize(matrix, 0, matrix.shape[0])
