"""Rounding to nearest equals compressed-tensors' ``calculate_qparams`` and ``quantize``, and a formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle import forward
from compressed_tensors.quantization.utils import calculate_qparams
from tests.compress.quantize.matrices import grid, heavy_tailed
from torch import Tensor

from hasten.compress.quantize.rounding.rtn import METHOD
from hasten.core.errors import CheckpointError
from hasten.layers.formats.stored_matrix import GroupedRows


def library_rows(weights: Tensor, bits: int, group_size: int | None, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes from 0, scales and zeros of the library for float32 weights."""
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
    groups = weights.view(len(weights), -1, group_size or weights.shape[1])
    scales, zeros = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    codes = forward.quantize(weights, scales, zeros, args)
    return codes + 2 ** (bits - 1), scales, zeros.float() + 2 ** (bits - 1)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "offsets"])
@pytest.mark.parametrize("group_size", [32, 64, None])
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_scales_and_zeros_are_those_of_compressed_tensors(bits: int, group_size: int | None, symmetric: bool) -> None:
    """Bit for bit, with float32 scales. The library adds zeros before it rounds, so halves may round the other way."""
    weights = heavy_tailed(48, 192, seed=bits)
    weights[3] = weights[3].abs() + 0.01  # 0 is outside the range of the weights
    weights[4] = -weights[4].abs()
    rows = METHOD().quantize(weights, grid(bits, group_size, symmetric=symmetric, scale_dtype=torch.float32), None, "w")
    codes, scales, zeros = library_rows(weights, bits, group_size, symmetric)
    assert torch.equal(rows.scales_OG, scales)
    assert torch.equal(torch.as_tensor(rows.zeros).expand_as(zeros).float(), zeros)
    assert torch.equal(rows.codes_OI.float(), codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "offsets"])
def test_codes_are_the_nearest_for_the_scale_as_it_is_stored(dtype: torch.dtype, symmetric: bool) -> None:
    weights = heavy_tailed(16, 128)
    rows = METHOD().quantize(weights, grid(3, 32, symmetric=symmetric, scale_dtype=dtype), None, "w")
    assert torch.equal(rows.scales_OG, rows.scales_OG.to(dtype).float())
    zeros = np.broadcast_to(np.asarray(rows.zeros, dtype=np.float64), rows.scales_OG.shape)[..., None]
    numbers = (np.arange(8)[None, None] - zeros) * rows.scales_OG.double().numpy()[..., None]
    errors = np.abs(weights.double().numpy().reshape(16, 4, 32)[..., None] - numbers[:, :, None])
    nearest = np.take_along_axis(errors, rows.codes_OI.numpy().reshape(16, 4, 32)[..., None].astype(int), -1)[..., 0]
    assert (nearest <= errors.min(-1) * (1 + 1e-6)).all()


def test_zeros_stay_zeros() -> None:
    weights = heavy_tailed(4, 64)
    weights[1] = 0
    weights[2, 32:] = 0
    for symmetric in (True, False):
        rows = METHOD().quantize(weights, grid(symmetric=symmetric), None, "w")
        assert (rows.dequantize()[weights == 0] == 0).all()
        assert rows.scales_OG.isfinite().all() and (rows.scales_OG > 0).all()


def test_rows_do_not_depend_on_each_other() -> None:
    weights = heavy_tailed(16, 64)
    rows, some = (METHOD().quantize(matrix, grid(symmetric=False), None, "w") for matrix in (weights, weights[5:9]))
    assert isinstance(rows, GroupedRows) and torch.equal(rows.codes_OI[5:9], some.codes_OI)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("clip", ["none", "mse", "percentile"])
def test_weights_that_are_not_finite_are_refused(value: float, clip: str) -> None:
    weights = heavy_tailed(4, 256)
    weights[2, 7] = value
    for symmetric in (True, False):
        with pytest.raises(CheckpointError, match="not finite"):
            METHOD().quantize(weights, grid(group_size=256, symmetric=symmetric, clip=clip), None, "w")


def test_scales_that_overflow_their_dtype_are_refused() -> None:
    with pytest.raises(CheckpointError, match="too large for scales in float16"):
        METHOD().quantize(torch.full((2, 32), 1e6), grid(), None, "w")
