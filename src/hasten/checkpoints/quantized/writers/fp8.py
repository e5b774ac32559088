"""FP8 in blocks, as DeepSeek writes it: the inverse of ``read_fp8``, and the configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.quantized.fp8 import DEFAULT_BLOCK
from hasten.checkpoints.quantized.writers.base import LM_HEAD
from hasten.layers.formats.quant_spec import ActivationSpec, QuantSpec
from hasten.layers.formats.stored_matrix import Fp8Rows, QuantizedRows

HEIGHT, WIDTH = DEFAULT_BLOCK
ACTIVATIONS = ActivationSpec("float", 8, dynamic=True, granularity="group", group_size=WIDTH)


@dataclass(frozen=True, slots=True)
class Fp8Writer:
    """See ``FormatWriter``."""

    def find_faults(self, spec: QuantSpec, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
        faults = list(_scheme_faults(spec))
        # transformers takes the size of a block from the shape of the scales, and vLLM fuses matrices of whole blocks only.
        faults += [
            f"{module} has {outputs} outputs and {inputs} inputs, no multiples of {HEIGHT} and {WIDTH}"
            for module, (outputs, inputs) in shapes.items()
            if outputs % HEIGHT or inputs % WIDTH
        ]
        if LM_HEAD in shapes:
            faults.append(f"fp8 does not quantise {LM_HEAD}")
        return faults

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float32

    def tensors(
        self, module: str, rows: QuantizedRows, spec: QuantSpec, dtype: torch.dtype, input_scale: float | None
    ) -> dict[str, Tensor]:
        assert isinstance(rows, Fp8Rows) and rows.block_size == WIDTH and input_scale is None, module
        return {
            f"{module}.weight": rows.values_OI.contiguous(),
            f"{module}.weight_scale_inv": rows.scales_OC[::HEIGHT].float().contiguous(),
        }

    def settings(self, specs: Mapping[str, QuantSpec], ignored: Sequence[str]) -> dict[str, Any]:
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": list(dict.fromkeys([*ignored, LM_HEAD])),
            "quant_method": "fp8",
            "weight_block_size": [HEIGHT, WIDTH],
        }


WRITER = Fp8Writer()


def _scheme_faults(spec: QuantSpec) -> Iterator[str]:
    if spec.kind != "float" or spec.bits != 8:
        yield f"fp8 stores 8-bit floats, not {'int' if spec.kind == 'int' else 'fp'}{spec.bits}"
    if spec.granularity != "block" or spec.block != DEFAULT_BLOCK:
        size = f"blocks of {spec.block[0]} x {spec.block[1]}" if spec.block else f"per {spec.granularity}"
        yield f"fp8 is written with a scale per block of {HEIGHT} x {WIDTH}, not {size}"
    if spec.activations != ACTIVATIONS:
        yield f"fp8 is written for dynamic FP8 activations in groups of {WIDTH}"
