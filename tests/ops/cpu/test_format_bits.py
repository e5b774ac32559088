"""The bits per weight of a format agree with the memory of its matrix, apart from scales and padding."""

from __future__ import annotations

import pytest
import torch

from hasten.layers.formats.packed import PackedFormatFactory
from hasten.ops.cpu.cpu import Cpu
from hasten.ops.cpu.matrix import Weights

KINDS = [(torch.float32, None), (torch.bfloat16, None), (torch.float16, None)]
KINDS += [(torch.bfloat16, kind) for kind in ("int8", "int8-weight-only", "int4", "int4-weight-only")]


@pytest.mark.parametrize(("dtype", "quantization"), KINDS)
def test_bits_per_weight_agree_with_the_memory(cpu: Cpu, dtype: torch.dtype, quantization: str | None) -> None:
    weights = Weights(cpu)
    matrix = PackedFormatFactory(weights, dtype, quantization).projection(1024, 2048)
    matrix.load("weight", torch.randn(2048, 1024).to(dtype), slice(0, 2048), transposed=False)
    assert matrix.bits == pytest.approx(8 * weights.num_bytes / (1024 * 2048), rel=0.03)
