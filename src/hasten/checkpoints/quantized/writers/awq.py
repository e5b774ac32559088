"""AWQ in the GEMM layout: the inverse of ``read_awq``, and the configuration.

Symmetric codes are written with zero points of 8, since vLLM 0.33 reads no AWQ checkpoint without zero points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.quantized.awq import ORDER, ZERO
from hasten.checkpoints.quantized.bit_packing import pack_bits
from hasten.checkpoints.quantized.writers.base import LM_HEAD, float16_scales
from hasten.checkpoints.quantized.writers.gptq import skip_rules
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, QuantizedRows

BITS = 4


@dataclass(frozen=True, slots=True)
class AwqWriter:
    """See ``FormatWriter``."""

    def find_faults(self, spec: QuantSpec, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
        faults = list(_scheme_faults(spec))
        for module, (outputs, inputs) in shapes.items():
            if spec.group_size and inputs % spec.group_size:
                faults.append(f"{module} has {inputs} inputs, no multiple of {spec.group_size}")
            if outputs % len(ORDER):
                faults.append(f"{module} has {outputs} outputs, no multiple of {len(ORDER)}")
        if LM_HEAD in shapes:
            faults.append(f"awq does not quantise {LM_HEAD}")
        return faults

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float16

    def tensors(
        self, module: str, rows: QuantizedRows, spec: QuantSpec, dtype: torch.dtype, input_scale: float | None
    ) -> dict[str, Tensor]:
        assert isinstance(rows, GroupedRows) and rows.offsets_OG is None and input_scale is None, module
        scales_GO = float16_scales(module, rows)
        if isinstance(rows.zeros, int):
            assert rows.zeros == ZERO, module
            zeros_GO = torch.full(scales_GO.shape, rows.zeros, dtype=torch.uint8, device="cpu")
        else:
            zeros_GO = rows.zeros.T.to(torch.uint8)
            assert torch.equal(zeros_GO.float(), rows.zeros.T), f"the zero points of {module} are not codes"
        return {
            f"{module}.qweight": _pack_columns(rows.codes_OI.T),
            f"{module}.qzeros": _pack_columns(zeros_GO),
            f"{module}.scales": scales_GO,
        }

    def settings(self, specs: Mapping[str, QuantSpec], ignored: Sequence[str]) -> dict[str, Any]:
        (group_size,) = {spec.group_size or -1 for spec in specs.values()}
        dynamic = skip_rules(ignored)  # GPTQModel does not read modules_to_not_convert
        return {
            "bits": BITS,
            **({"dynamic": dynamic} if dynamic else {}),
            "group_size": group_size,
            "modules_to_not_convert": list(dict.fromkeys([*ignored, LM_HEAD])),
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
        }


WRITER = AwqWriter()


def _scheme_faults(spec: QuantSpec) -> Iterator[str]:
    if spec.kind != "int" or spec.bits != BITS:
        yield f"awq stores {BITS}-bit integers, not {'int' if spec.kind == 'int' else 'fp'}{spec.bits}"
    if spec.granularity not in ("channel", "group"):
        yield f"awq stores a scale per output or group, not per {spec.granularity}"
    if spec.is_nested or spec.reorders_inputs:
        yield f"awq has no {'nested scales' if spec.is_nested else 'order of inputs'}"
    if spec.activations is not None:
        yield "awq does not quantise activations"


def _pack_columns(codes_RO: Tensor) -> Tensor:
    """Return the codes of eight outputs in a word, int32 [R, O / 8]."""
    ordered_RWO = codes_RO.reshape(len(codes_RO), -1, len(ORDER))[..., list(ORDER)]
    return pack_bits(ordered_RWO.flatten(1), BITS)
