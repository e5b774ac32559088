"""Native code never sees a tensor of another dtype, device, shape or layout than it was told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu, Dtype
from hasten.ops.cpu.kv import NativeKv
from hasten.ops.cpu.matrix import Matrix, Weights
from hasten.ops.cpu.native_tensor import address, float_rows, padded_vector, strided_address
from hasten.ops.cpu.program import NormKind, Program

ROWS = torch.zeros(4, 6, dtype=torch.float32)


@pytest.mark.parametrize(
    "values",
    [ROWS.double(), ROWS.bfloat16(), ROWS.to("meta"), ROWS[:, :5], ROWS[:3], ROWS.T, ROWS.view(-1), torch.zeros(6, 4).T],
    ids=["float64", "bfloat16", "meta", "columns", "rows", "transposed", "flat", "strided"],
)
def test_an_address_is_refused_unless_all_is_as_stated(values: Tensor) -> None:
    assert address(ROWS, torch.float32, 4, 6) == ROWS.data_ptr()
    with pytest.raises(AssertionError):
        address(values, torch.float32, 4, 6)


def test_strided_rows_keep_their_address() -> None:
    part = ROWS[:, 1:5]
    assert strided_address(part, torch.float32, 4, 4) == ROWS.data_ptr() + 4
    with pytest.raises(AssertionError):
        strided_address(part, torch.float32, 4, 6)


def test_values_are_converted_and_padded() -> None:
    assert torch.equal(float_rows(torch.arange(6, dtype=torch.float64).view(2, 3).T), torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    padded = padded_vector(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), 2, 16)
    assert padded.dtype == torch.float32 and padded.tolist() == [1.0, 2.0] + [0.0] * 14
    with pytest.raises(AssertionError):
        padded_vector(torch.ones(3), 4, 16)


def test_vectors_and_rows_of_a_wrong_size_are_refused_when_they_are_recorded(cpu: Cpu) -> None:
    matrix = Matrix(Weights(cpu), 8, 16, Dtype.FLOAT32)
    with pytest.raises(AssertionError):
        matrix.multiply(torch.ones(2, 15), None)
    with pytest.raises(AssertionError):
        matrix.multiply(torch.ones(2, 16), torch.ones(7))
    with pytest.raises(AssertionError):
        matrix.pack(torch.ones(8, 15), 0)
    with pytest.raises(AssertionError):
        matrix.lookup(torch.tensor([0, 8]))
    program = Program(cpu, NativeKv(cpu, 2, 16), 4)
    x, out = program.buffer("x", 16), program.buffer("out", 8)
    with pytest.raises(AssertionError):
        program.norm(NormKind.RMS, x, torch.ones(15), None, 1e-6, x)
    with pytest.raises(AssertionError):
        program.linear(matrix, x, torch.ones(9), out)
    with pytest.raises(AssertionError):
        program.norm(NormKind.RMS, x, torch.ones(16), None, 1e-6, out)
