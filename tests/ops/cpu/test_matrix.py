"""Packed matrices against PyTorch: float formats exactly, quantised formats by their definition."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hasten.ops.cpu.cpu import DTYPES, Cpu, Dtype
from hasten.ops.cpu.matrix import Matrix, Weights

SHAPES = [(1, 1), (16, 64), (17, 65), (33, 128), (130, 257), (48, 1000)]  # [out, in]
ROWS = [1, 2, 3, 5, 8, 9, 17, 70]
MAX_VECTOR_ROWS = 8  # more rows are multiplied in AMX tiles, if supported


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def packed(cpu: Cpu, weight: Tensor, dtype: Dtype, **options: object) -> Matrix:
    """Return a matrix packed from ragged pieces, one of them stored transposed."""
    matrix = Matrix(Weights(cpu), *weight.shape, dtype, **options)
    bounds = sorted({0, len(weight), *random.Random(len(weight)).choices(range(len(weight)), k=2)})
    for i, (begin, end) in enumerate(pairwise(bounds)):
        part = weight[begin:end]
        matrix.pack(part.T.contiguous().T if i == 0 else part, begin)
    return matrix


def quantized_rows(x: Tensor) -> Tensor:
    """Return x quantised to int8 per row and dequantised: symmetric, round to nearest."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-127, 127) * scale


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_weights_are_stored_exactly_and_multiplied_in_float32(cpu: Cpu, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = random_tensor(*shape).to(dtype), random_tensor(shape[0], seed=1)
    matrix = packed(cpu, weight, DTYPES[dtype])
    assert torch.equal(matrix.lookup(torch.arange(shape[0])), weight.float())
    for rows in ROWS:
        x = random_tensor(rows, shape[1], seed=rows)
        result = matrix.multiply(x, bias)
        if cpu.isa == "amx" and dtype == torch.bfloat16 and rows > MAX_VECTOR_ROWS:
            x = x.bfloat16().float()  # tiles multiply bf16 with bf16
        expected = x.double() @ weight.double().T + bias
        bound = 1e-5 * (x.abs().double() @ weight.abs().double().T + bias.abs())
        assert ((result - expected).abs() <= bound).all()


@pytest.mark.parametrize("int8_activations", [True, False], ids=["int8-inputs", "float-inputs"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_rounds_to_nearest_per_output(cpu: Cpu, shape: tuple[int, int], int8_activations: bool) -> None:
    weight, bias = random_tensor(*shape), random_tensor(shape[0], seed=1)
    matrix = packed(cpu, weight, Dtype.INT8, int8_activations=int8_activations)
    stored = quantized_rows(weight)
    torch.testing.assert_close(matrix.lookup(torch.arange(shape[0])), stored, rtol=1e-5, atol=1e-6)
    for rows in ROWS:
        x = random_tensor(rows, shape[1], seed=rows)
        rounded = quantized_rows(x) if int8_activations else x
        expected = rounded.double() @ stored.double().T + bias
        torch.testing.assert_close(matrix.multiply(x, bias).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("int8_activations", [True, False], ids=["int8-inputs", "float-inputs"])
@pytest.mark.parametrize("shape", [(16, 128), (17, 256), (100, 384), (40, 200)], ids=str)
def test_int4_is_at_least_as_accurate_as_round_to_nearest(cpu: Cpu, shape: tuple[int, int], int8_activations: bool) -> None:
    """More accurate than a float scale per 32 weights; the weights are integer multiples of the output's scale."""
    weight = random_tensor(*shape)
    matrix = packed(cpu, weight, Dtype.INT4, int8_activations=int8_activations)
    stored = matrix.lookup(torch.arange(shape[0]))
    padded = torch.nn.functional.pad(weight, (0, -shape[1] % 32)).unflatten(1, (-1, 32))
    scale = padded.abs().amax(-1, keepdim=True) / 7
    nearest = ((padded / scale).round().clamp(-8, 7) * scale).flatten(1)[:, : shape[1]]
    assert (stored - weight).square().sum() <= (nearest - weight).square().sum()
    assert all(len(part.unique()) <= 16 for row in stored for part in row.split(16))
    levels = stored * (120 / weight.abs().amax(-1, keepdim=True))
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    for rows in ROWS:
        x = random_tensor(rows, shape[1], seed=rows)
        rounded = quantized_rows(x) if int8_activations else x
        torch.testing.assert_close(matrix.multiply(x, None).double(), rounded.double() @ stored.double().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), Dtype.INT8, Dtype.INT4])
def test_products_are_batch_invariant(cpu: Cpu, dtype: Dtype) -> None:
    quantized = dtype in (Dtype.INT8, Dtype.INT4)
    matrix = packed(cpu, random_tensor(150, 320), dtype, int8_activations=quantized)
    x, bias = random_tensor(80, 320, seed=3), random_tensor(150, seed=4)
    separate = torch.cat([matrix.multiply(row[None], bias) for row in x])
    for rows in (2, 3, 4, 7, 8, 9, 31, 80):
        begin = 80 - rows
        if dtype is Dtype.BFLOAT16 and cpu.isa == "amx":
            continue  # documented: tiles round activations to bf16, the form for few rows does not
        assert torch.equal(matrix.multiply(x[begin:], bias), separate[begin:])


def test_memory_agrees_with_the_format(cpu: Cpu) -> None:
    compressed = 1.5 + 8 / 256 + 4 / 1024  # 12 bits, outlier lists, exponent bases
    for dtype, bytes_per_weight in ((Dtype.BFLOAT16, compressed), (Dtype.INT8, 1), (Dtype.INT4, 4.5 / 8 + 4 / 1024)):
        weights = Weights(cpu)
        Matrix(weights, 512, 1024, dtype)
        assert weights.num_bytes == pytest.approx(512 * 1024 * bytes_per_weight, rel=0.005)


def test_bfloat16_with_many_outliers_is_stored_exactly(cpu: Cpu) -> None:
    """Too many outliers for the 12-bit format: the matrix changes to 16 bits, with the rows packed before."""
    weights = Weights(cpu)
    weight = random_tensor(70, 96)
    weight[40:, ::3] *= 2.0**-60
    weight = weight.bfloat16()
    matrix = Matrix(weights, *weight.shape, Dtype.BFLOAT16)
    for begin, end in ((0, 20), (20, 45), (45, 70)):
        matrix.pack(weight[begin:end], begin)
    assert torch.equal(matrix.lookup(torch.arange(70)), weight.float())
    assert weights.num_bytes == pytest.approx(80 * 96 * 2, rel=0.15)
    x = random_tensor(3, 96)
    assert torch.allclose(matrix.multiply(x, None), x @ weight.float().T, atol=1e-5)


def test_products_with_single_outliers_are_exact(cpu: Cpu) -> None:
    """Only the outlier contributes to the product, so an error would show."""
    weight = random_tensor(48, 64).bfloat16()
    weight[5, 9], weight[21, 63], weight[47, 0] = 2.0**-50, -(2.0**-45), 3.0 * 2.0**-70
    matrix = packed(cpu, weight, Dtype.BFLOAT16)
    for rows in ROWS:
        for column in (9, 63, 0):
            x = torch.zeros(rows, 64)
            x[:, column] = 2.0
            assert torch.equal(matrix.multiply(x, None), (2 * weight[:, column].float()).expand(rows, -1))
