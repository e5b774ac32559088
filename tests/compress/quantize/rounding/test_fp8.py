"""FP8 equals torch's cast with the formula of the scales, and compressed-tensors for outputs and blocks."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle import forward
from compressed_tensors.quantization.utils import calculate_qparams
from tests.compress.quantize.matrices import heavy_tailed
from tests.quantized_checkpoints import e4m3_values
from torch import Tensor

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.rounding.fp8 import METHOD
from hasten.core.errors import CheckpointError
from hasten.layers.formats.quant_spec import QuantSpec

BLOCK = (16, 32)


def fp8_grid(granularity: str, dtype: torch.dtype = torch.float32, block: tuple[int, int] = BLOCK) -> Grid:
    spec = QuantSpec(scheme="FP8", kind="float", bits=8, granularity=granularity, block=block if granularity == "block" else None)
    return Grid(spec, dtype)


def tile_scales(weights: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return the scale of each weight, one tile at a time."""
    scales = torch.empty_like(weights)
    for top in range(0, len(weights), height):
        for left in range(0, weights.shape[1], width):
            tile = (slice(top, top + height), slice(left, left + width))
            scales[tile] = (weights[tile].abs().max() / 448).to(dtype).float()
    return scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 96), (40, 80), (7, 20)], ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
def test_values_are_torchs_cast_of_weights_over_scales(granularity: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weights = heavy_tailed(*shape)
    rows = METHOD().quantize(weights, fp8_grid(granularity, dtype), None, "w")
    height, width = {"tensor": shape, "channel": (1, shape[1]), "block": BLOCK}[granularity]
    scales = tile_scales(weights, height, width, dtype)
    assert torch.equal(rows.scales_OC.repeat_interleave(rows.block_size, 1)[:, : shape[1]], scales)
    assert rows.scales_OC.shape == (shape[0], -(-shape[1] // width)) and rows.scales_OC.dtype == torch.float32
    assert rows.block_size == min(width, shape[1])
    expected = (weights / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(rows.values_OI.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("shape", [(48, 96), (40, 80)], ids=str)
@pytest.mark.parametrize("granularity", ["channel", "block"])
def test_values_and_scales_are_those_of_compressed_tensors(granularity: str, shape: tuple[int, int]) -> None:
    weights = heavy_tailed(*shape)
    rows = METHOD().quantize(weights, fp8_grid(granularity), None, "w")
    if granularity == "channel":
        args = QuantizationArgs(num_bits=8, type="float", strategy="channel")
        scales, zeros = calculate_qparams(weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True), args)
        stored = scales
    else:
        args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=list(BLOCK))
        tiles = [list(band.split(BLOCK[1], 1)) for band in weights.split(BLOCK[0])]
        lows, highs = (torch.tensor([[float(end(tile)) for tile in band] for band in tiles]) for end in (torch.min, torch.max))
        scales, zeros = calculate_qparams(lows, highs, args)
        stored = scales.repeat_interleave(BLOCK[0], 0)[: shape[0]]
    assert torch.equal(rows.scales_OC, stored)
    values = forward.quantize(weights, scales, zeros, args, dtype=torch.float8_e4m3fn)
    assert torch.equal(rows.values_OI.view(torch.uint8), values.view(torch.uint8))


def test_values_are_the_nearest_numbers_of_the_format() -> None:
    weights = heavy_tailed(8, 64)
    rows = METHOD().quantize(weights, fp8_grid("channel"), None, "w")
    numbers = torch.from_numpy(e4m3_values()).double()
    finite = numbers[numbers.isfinite()]
    errors = (weights.double()[..., None] - finite * rows.scales_OC.double()[..., None]).abs().amin(-1)
    torch.testing.assert_close((weights - rows.dequantize()).double().abs(), errors, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
def test_zeros_and_vanishing_weights_give_finite_scales(granularity: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for weights in (torch.zeros(40, 80), torch.full((40, 80), 1e-42), -torch.zeros(40, 80)):
            rows = METHOD().quantize(weights, fp8_grid(granularity, dtype), None, "w")
            assert (rows.scales_OC > 0).all() and rows.scales_OC.isfinite().all()
            assert (rows.dequantize().abs() <= 1e-40).all()


def test_a_scale_rounded_down_does_not_overflow() -> None:
    weights = torch.linspace(1, 2, 4000).view(-1, 1)
    for dtype in (torch.float16, torch.bfloat16):
        rows = METHOD().quantize(weights, fp8_grid("channel", dtype), None, "w")
        assert (rows.values_OI.float() > 400).all() and rows.values_OI.float().isfinite().all()
    rows = METHOD().quantize(torch.full((1, 8), 4e-5), fp8_grid("channel", torch.float16), None, "w")  # a subnormal scale
    assert (rows.values_OI.float() == 448).all()


def test_rows_of_one_band_of_blocks_do_not_depend_on_others() -> None:
    weights = heavy_tailed(48, 96)
    for granularity in ("channel", "block"):
        rows, some = (METHOD().quantize(w, fp8_grid(granularity), None, "w") for w in (weights, weights[16:32]))
        assert torch.equal(rows.values_OI.view(torch.uint8)[16:32], some.values_OI.view(torch.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
def test_weights_that_are_not_finite_are_refused(granularity: str, value: float) -> None:
    weights = heavy_tailed(40, 80)
    weights[39, 79] = value
    with pytest.raises(CheckpointError, match="not finite"):
        METHOD().quantize(weights, fp8_grid(granularity), None, "w")
