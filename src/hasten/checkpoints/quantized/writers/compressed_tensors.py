"""compressed-tensors: the inverse of ``read_compressed_tensors``, and the configuration.

::

    pack-quantized    int4 and int8, with or without dynamic int8 inputs     weight_packed, weight_scale, weight_shape
    int-quantized     int8, one scale per output, int8 inputs                weight int8, weight_scale, input_scale
    float-quantized   FP8 with FP8 inputs                                    weight e4m3, weight_scale, input_scale
    naive-quantized   FP8, weight-only                                       weight e4m3, weight_scale

Only what versions 0.17 to 0.20 of the library and vLLM 0.33 read is written. vLLM runs int4 codes with int8 inputs on more devices
from packed words than from bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.quantized.bit_packing import pack_bits
from hasten.checkpoints.quantized.writers.base import LM_HEAD
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, GroupedRows, QuantizedRows

NAME = "compressed-tensors"
VERSION = "0.17.0"  # of the library: the oldest one that the files are tested with


@dataclass(frozen=True, slots=True)
class CompressedTensorsWriter:
    """See ``FormatWriter``."""

    def find_faults(self, spec: QuantSpec, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
        faults = _float_faults(spec) if spec.kind == "float" else _int_faults(spec)
        if spec.granularity == "group" and spec.group_size:
            size = spec.group_size
            faults += [
                f"{module} has {inputs} inputs, no multiple of {size}" for module, (_, inputs) in shapes.items() if inputs % size
            ]
        if spec.block is not None:
            height, width = spec.block
            faults += [
                f"{module} has {outputs} outputs and {inputs} inputs, no multiples of {height} and {width}"
                for module, (outputs, inputs) in shapes.items()
                if outputs % height or inputs % width
            ]
        return faults

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return model_dtype

    def tensors(
        self, module: str, rows: QuantizedRows, spec: QuantSpec, dtype: torch.dtype, input_scale: float | None
    ) -> dict[str, Tensor]:
        assert (input_scale is not None) == _is_static(spec.activations), module
        parts = _float_parts(rows, spec) if isinstance(rows, Fp8Rows) else _int_parts(rows, spec)
        scales = parts["weight_scale"]
        parts["weight_scale"] = scales.to(dtype)
        assert torch.equal(parts["weight_scale"].float(), scales), f"the scales of {module} are not numbers of {dtype}"
        if input_scale is not None:
            parts["input_scale"] = torch.tensor([input_scale], dtype=dtype, device="cpu")
        return {f"{module}.{part}": tensor for part, tensor in parts.items()}

    def settings(self, specs: Mapping[str, QuantSpec], ignored: Sequence[str]) -> dict[str, Any]:
        """Return the configuration. ``lm_head`` is ignored even if it is tied and has no tensor."""
        modules: dict[QuantSpec, list[str]] = {}
        for module, spec in specs.items():
            modules.setdefault(spec, []).append(module)
        groups = {
            f"group_{index}": _group(spec, ["Linear"] if len(modules) == 1 else names)
            for index, (spec, names) in enumerate(modules.items())
        }
        formats = {group["format"] for group in groups.values()}
        return {
            "config_groups": groups,
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "global_compression_ratio": None,
            "ignore": list(dict.fromkeys([*ignored, *(() if LM_HEAD in specs else (LM_HEAD,))])),
            "kv_cache_scheme": None,
            "quant_method": NAME,
            "quantization_status": "compressed",
            "version": VERSION,
        }


WRITER = CompressedTensorsWriter()


def _int_faults(spec: QuantSpec) -> list[str]:
    faults = []
    if spec.bits not in (4, 8):
        faults.append(f"{NAME} is written with 4 or 8 bits, not {spec.bits}")
    if spec.zero is None:
        faults.append(f"{NAME} is written without zero points: current transformers does not load packed ones")
    if spec.granularity not in ("channel", "group"):
        faults.append(f"{NAME} is written with a scale per output or group of integers, not per {spec.granularity}")
    if spec.is_nested or spec.reorders_inputs:
        faults.append(f"{NAME} has no {'nested scales' if spec.is_nested else 'order of inputs'}")
    inputs = spec.activations
    if inputs is None:
        return faults
    if (inputs.kind, inputs.bits) != ("int", 8):
        faults.append(f"{NAME} is written with int8 activations for integer weights, not {_name(inputs)}")
    elif inputs.dynamic and inputs.granularity != "token":
        faults.append(f"{NAME} is written with a scale per token of dynamic int8 activations, not per {inputs.granularity}")
    elif not inputs.dynamic and (spec.bits, spec.granularity, inputs.granularity) != (8, "channel", "tensor"):
        faults.append(f"{NAME} is written with static int8 activations for 8-bit weights with one scale per output only")
    return faults


def _float_faults(spec: QuantSpec) -> list[str]:
    faults = []
    if spec.bits != 8:
        faults.append(f"{NAME} is written with floats of 8 bits, not {spec.bits}")
    if spec.granularity == "group":
        faults.append(f"{NAME} is written with a scale per tensor, output or block of FP8 weights, not per group")
    inputs = spec.activations
    if inputs is None:
        return faults
    if (inputs.kind, inputs.bits) != ("float", 8):
        faults.append(f"{NAME} is written with FP8 activations for FP8 weights, not {_name(inputs)}")
    elif spec.block is not None:
        if not inputs.dynamic or (inputs.granularity, inputs.group_size) != ("group", spec.block[1]):
            faults.append(f"{NAME} is written with dynamic FP8 activations in groups of {spec.block[1]} for blocks of weights")
    elif inputs.granularity != ("token" if inputs.dynamic else "tensor"):
        faults.append(f"{NAME} is written with FP8 activations per token, or static ones per tensor")
    return faults


def _int_parts(rows: GroupedRows, spec: QuantSpec) -> dict[str, Tensor]:
    assert rows.zeros == spec.zero == 1 << (spec.bits - 1) and rows.offsets_OG is None
    parts = {"weight_scale": rows.scales_OG.contiguous()}
    if _format(spec) == "int-quantized":
        return {"weight": (rows.codes_OI.short() - spec.zero).to(torch.int8), **parts}
    shape = torch.tensor(list(rows.codes_OI.shape), dtype=torch.int64, device="cpu")
    return {"weight_packed": pack_bits(rows.codes_OI, spec.bits), **parts, "weight_shape": shape}


def _float_parts(rows: Fp8Rows, spec: QuantSpec) -> dict[str, Tensor]:
    scales = rows.scales_OC
    if spec.granularity == "tensor":
        scales = scales[:1, 0]
    elif spec.block is not None:
        scales = scales[:: spec.block[0]]
    return {"weight": rows.values_OI.contiguous(), "weight_scale": scales.contiguous()}


def _format(spec: QuantSpec) -> str:
    if spec.kind == "float":
        return "float-quantized" if spec.activations is not None else "naive-quantized"
    are_bytes = spec.activations is not None and (spec.bits, spec.granularity) == (8, "channel")
    return "int-quantized" if are_bytes else "pack-quantized"


def _group(spec: QuantSpec, targets: list[str]) -> dict[str, Any]:
    """Return one entry of config_groups."""
    weights: dict[str, Any] = {
        "num_bits": spec.bits,
        "type": spec.kind,
        "symmetric": True,
        "strategy": spec.granularity,
        "group_size": spec.group_size if spec.granularity == "group" else None,
        "dynamic": False,
    }
    if spec.block is not None:
        weights["block_structure"] = list(spec.block)
    inputs = spec.activations
    activations = None
    if inputs is not None:
        activations = {
            "num_bits": inputs.bits,
            "type": inputs.kind,
            "symmetric": True,
            "strategy": inputs.granularity,
            "group_size": inputs.group_size if inputs.granularity == "group" else None,
            "dynamic": inputs.dynamic,
        }
    return {
        "format": _format(spec),
        "input_activations": activations,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


def _is_static(activations: ActivationSpec | None) -> bool:
    return activations is not None and not activations.dynamic


def _name(activations: ActivationSpec) -> str:
    return f"{'int' if activations.kind == 'int' else 'fp'}{activations.bits}"
