"""GPTQ, version 1, symmetric: the inverse of ``read_gptq``, and the configuration.

Asymmetric codes are not written: libraries disagree on what a zero of 0 means in version 1. vLLM 0.33 reads 4 and 8 bits, GPTQModel
all widths.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.checkpoints.quantized.bit_packing import pack_bits
from hasten.checkpoints.quantized.gptq import BITS
from hasten.checkpoints.quantized.writers.base import LM_HEAD, float16_scales
from hasten.layers.formats.quant_spec import QuantSpec
from hasten.layers.formats.stored_matrix import GroupedRows, QuantizedRows

# vLLM looks up a rule by the name of the matrix into which it fuses these.
FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}


@dataclass(frozen=True, slots=True)
class GptqWriter:
    """See ``FormatWriter``."""

    def find_faults(self, spec: QuantSpec, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
        faults = list(_scheme_faults(spec))
        for module, (outputs, inputs) in shapes.items():
            if spec.group_size and inputs % spec.group_size:
                faults.append(f"{module} has {inputs} inputs, no multiple of {spec.group_size}")
            for what, size in (("inputs", inputs), ("outputs", outputs)):
                if spec.kind == "int" and size * spec.bits % 32:
                    faults.append(f"{module} has {size} {what}, which do not fill words of 32 bits")
        return faults

    def scale_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        return torch.float16

    def tensors(
        self, module: str, rows: QuantizedRows, spec: QuantSpec, dtype: torch.dtype, input_scale: float | None
    ) -> dict[str, Tensor]:
        assert isinstance(rows, GroupedRows) and rows.offsets_OG is None and input_scale is None, module
        zero = 1 << (spec.bits - 1)
        assert rows.zeros == spec.zero == zero, module
        inputs = rows.codes_OI.shape[1]
        scales_GO = float16_scales(module, rows)
        stored_GO = torch.full(scales_GO.shape, zero - 1, dtype=torch.uint8, device="cpu")  # version 1 stores one less
        return {
            f"{module}.qweight": pack_bits(rows.codes_OI, spec.bits).T.contiguous(),
            f"{module}.qzeros": pack_bits(stored_GO, spec.bits),
            f"{module}.scales": scales_GO,
            f"{module}.g_idx": torch.arange(inputs, dtype=torch.int32, device="cpu") // rows.group_size,
        }

    def settings(self, specs: Mapping[str, QuantSpec], ignored: Sequence[str]) -> dict[str, Any]:
        """Return the configuration: the scheme of most modules, and rules for the others."""
        widths = {module: (spec.bits, spec.group_size or -1) for module, spec in specs.items()}
        ((usual, _),) = Counter(widths.values()).most_common(1)
        dynamic = skip_rules(ignored)
        for module, (bits, group_size) in widths.items():
            if (bits, group_size) != usual:
                dynamic |= {f"+:{pattern}": {"bits": bits, "group_size": group_size} for pattern in _patterns(module)}
        return {
            "bits": usual[0],
            "checkpoint_format": "gptq",
            "desc_act": False,
            **({"dynamic": dynamic} if dynamic else {}),
            "group_size": usual[1],
            "lm_head": LM_HEAD in specs,
            "quant_method": "gptq",
            "sym": True,
        }


WRITER = GptqWriter()


def skip_rules(ignored: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the rules of GPTQModel's ``dynamic`` that leave these modules alone.

    It quantises nothing outside the layers, so modules there need no rule. Other rules give a pattern values, and these give none.
    """
    return {f"-:{pattern}": {} for module in ignored if re.search(r"\.\d+\.", module) for pattern in _patterns(module)}


def _scheme_faults(spec: QuantSpec) -> Iterator[str]:
    if spec.kind != "int":
        yield "gptq stores integers, not floats"
    elif spec.bits not in BITS:
        yield f"gptq stores {', '.join(map(str, BITS[:-1]))} or {BITS[-1]} bits, not {spec.bits}"
    if spec.has_offsets:
        yield "gptq is written without zero points: libraries disagree on a zero point of 0"
    if spec.granularity not in ("channel", "group"):
        yield f"gptq stores a scale per output or group, not per {spec.granularity}"
    if spec.is_nested or spec.reorders_inputs:
        yield f"gptq is written without {'nested scales' if spec.is_nested else 'an order of inputs'}"
    if spec.activations is not None:
        yield "gptq does not quantise activations"


def _patterns(module: str) -> Iterator[str]:
    """Yield the regular expressions of a module, and of the matrix into which vLLM fuses it."""
    name = module.rpartition(".")[2]
    for last in (name, FUSED.get(name)):
        if last is not None:
            yield re.escape(module.removesuffix(name) + last) + "$"
