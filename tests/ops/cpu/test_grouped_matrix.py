"""Matrices that were quantised before: every weight exactly, products against exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hasten.layers.formats.stored_matrix import Fp8Rows, GroupedRows
from hasten.ops.cpu.cpu import Cpu, Dtype
from hasten.ops.cpu.library import NotFinite
from hasten.ops.cpu.matrix import GROUP_SIZES, ZEROS, Groups, Matrix, Weights

KINDS = [
    *(
        (dtype, Groups(size, offsets))
        for dtype in (Dtype.CODES4, Dtype.CODES8)
        for size in GROUP_SIZES
        for offsets in (False, True)
    ),
    *((Dtype.FP8, Groups(size)) for size in GROUP_SIZES),
]
SHAPES = [(1, 1), (33, 100), (80, 1537)]  # [out, in]
ROWS = [1, 3, 8, 70]


def draw(dtype: Dtype, groups: Groups, shape: tuple[int, int]) -> GroupedRows | Fp8Rows:
    rng = torch.Generator().manual_seed(sum(shape) + groups.size)
    num_groups = -(-shape[1] // groups.size)
    scales = torch.rand(shape[0], num_groups, generator=rng) * 0.02 + 1e-3
    if dtype is Dtype.FP8:
        return Fp8Rows((torch.randn(shape, generator=rng) * 30).to(torch.float8_e4m3fn), scales, groups.size)
    codes = torch.randint(0, 16 if dtype is Dtype.CODES4 else 256, shape, dtype=torch.uint8, generator=rng)
    if not groups.has_offsets:
        return GroupedRows(codes, scales, groups.size, zeros=ZEROS[dtype])
    # Offsets that are whole multiples of short scales: then the oracle, which multiplies and adds, is exact.
    scales = scales.bfloat16().float()
    zeros = torch.randint(-9, 20, scales.shape, generator=rng)
    return GroupedRows(codes, scales, groups.size, offsets_OG=-zeros * scales)


def packed(cpu: Cpu, dtype: Dtype, groups: Groups, rows: GroupedRows | Fp8Rows, **options: bool) -> Matrix:
    """Return a matrix packed from two ragged pieces."""
    if isinstance(rows, Fp8Rows):
        codes, scales, offsets = rows.values_OI, rows.scales_OC, None
    else:
        codes, scales, offsets = rows.codes_OI, rows.scales_OG, rows.offsets()
    matrix = Matrix(Weights(cpu), *codes.shape, dtype, groups=groups, **options)
    for piece in (slice(0, len(codes) // 3), slice(len(codes) // 3, None)):
        matrix.pack_codes(codes[piece], scales[piece], None if offsets is None else offsets[piece], piece.start)
    return matrix


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "groups"), KINDS, ids=str)
def test_weights_are_exact_and_multiplied_as_in_float32(cpu: Cpu, dtype: Dtype, groups: Groups, shape: tuple[int, int]) -> None:
    """Integer codes are multiplied with inputs of 16 bits: the largest of 128 inputs is 32,512 steps."""
    stored = draw(dtype, groups, shape)
    weight = stored.dequantize()
    matrix = packed(cpu, dtype, groups, stored)
    assert torch.equal(matrix.lookup(torch.arange(shape[0])), weight)
    rng = torch.Generator().manual_seed(7)
    for rows in ROWS:
        x, bias = torch.randn(rows, shape[1], generator=rng), torch.randn(shape[0], generator=rng)
        x[:, ::97] *= 30
        expected = x.double() @ weight.double().T + bias
        bound = 1e-5 * (x.abs().double() @ weight.abs().double().T + bias.abs())
        if dtype is not Dtype.FP8:
            bound += half_steps(x).double() @ weight.abs().double().T
        assert ((matrix.multiply(x, bias) - expected).abs() <= bound).all()


def half_steps(x: Tensor) -> Tensor:
    """Return half a step of the 16-bit form of each input."""
    blocks = [part.abs().amax(1, keepdim=True).expand_as(part) for part in x.split(128, dim=1)]
    return torch.cat(blocks, dim=1) / 32_512 / 2


@pytest.mark.parametrize("dtype", [Dtype.CODES4, Dtype.CODES8])
def test_products_with_16_bit_inputs_are_close_to_float32(cpu: Cpu, dtype: Dtype) -> None:
    """Within a thousandth of the norm, with an input a thousand times as large as the others."""
    groups = Groups(64, has_offsets=True)
    stored = draw(dtype, groups, (64, 4096))
    x = torch.randn(20, 4096, generator=torch.Generator().manual_seed(2))
    x[:, 70] = 1000
    x[3] = 0
    exact = x.double() @ stored.dequantize().double().T
    found = packed(cpu, dtype, groups, stored).multiply(x, None)
    assert ((found - exact).norm(dim=1) <= 1e-3 * exact.norm(dim=1)).all()


def test_an_input_that_is_not_finite_spoils_its_own_row(cpu: Cpu) -> None:
    groups = Groups(32)
    stored = draw(Dtype.CODES4, groups, (40, 300))
    matrix = packed(cpu, Dtype.CODES4, groups, stored)
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(2))
    clean = matrix.multiply(x, None)
    for value in (float("nan"), float("inf")):
        x[1, 290] = value
        found = matrix.multiply(x, None)
        assert found[1].isnan().all() and torch.equal(found[[0, 2]], clean[[0, 2]])


def int8_product(stored: GroupedRows, x: Tensor) -> Tensor:
    """The documented order of an int8 product, with every multiply-add rounded once (80 bits hold each one exactly)."""
    absmax = x.abs().amax(1, keepdim=True)
    x8 = (x * (torch.tensor(127.0) / absmax)).round().long().numpy()
    codes, zero = stored.codes_OI.long().numpy(), stored.zeros if isinstance(stored.zeros, int) else 0
    offsets, total = stored.offsets(), np.zeros((len(x8), len(codes)), np.float32)
    for group, begin in enumerate(range(0, codes.shape[1], stored.group_size)):
        inputs = slice(begin, begin + stored.group_size)
        products = (x8[:, inputs] @ (codes[:, inputs] - zero).T).astype(np.float32)
        total = _multiply_add(stored.scales_OG[:, group].numpy()[None], products, total)
        if offsets is not None:
            sums = x8[:, inputs].sum(1, keepdims=True).astype(np.float32)
            total = _multiply_add(offsets[:, group].numpy()[None], sums, total)
    return torch.from_numpy(total) * (absmax / 127)


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "groups"), [kind for kind in KINDS if kind[0] is not Dtype.FP8], ids=str)
def test_int8_activations_are_exactly_the_integer_reference(cpu: Cpu, dtype: Dtype, groups: Groups, shape: tuple[int, int]) -> None:
    stored = draw(dtype, groups, shape)
    matrix = packed(cpu, dtype, groups, stored, int8_activations=True)
    for rows in ROWS:
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        assert torch.equal(matrix.multiply(x, None), int8_product(stored, x))


@pytest.mark.parametrize("int8_activations", [False, True], ids=["float-inputs", "int8-inputs"])
@pytest.mark.parametrize(("dtype", "groups"), KINDS, ids=str)
def test_products_do_not_depend_on_batch_or_threads(cpu: Cpu, dtype: Dtype, groups: Groups, int8_activations: bool) -> None:
    if dtype is Dtype.FP8 and int8_activations:
        with pytest.raises(AssertionError):  # FP8 numbers have no integer products
            packed(cpu, dtype, groups, draw(dtype, groups, (16, 32)), int8_activations=True)
        return
    stored = draw(dtype, groups, (150, 320))
    matrix = packed(cpu, dtype, groups, stored, int8_activations=int8_activations)
    one_thread = Cpu(cpu.library, cpu.isa, 1)
    alone = packed(one_thread, dtype, groups, stored, int8_activations=int8_activations)
    x = torch.randn(80, 320, generator=torch.Generator().manual_seed(3))
    separate = torch.cat([alone.multiply(row[None], None) for row in x])
    for rows in (2, 3, 7, 8, 9, 31, 80):
        assert torch.equal(matrix.multiply(x[80 - rows :], None), separate[80 - rows :])


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_fp8_numbers_count_where_the_caller_flushes_them(cpu: Cpu, threads: int) -> None:
    """At their place in a float they are subnormal. The mode of the calling thread stays as it was."""
    codes = torch.full((300, 64), 2.0**-9).to(torch.float8_e4m3fn)
    torch.set_flush_denormal(True)
    try:
        matrix = packed(Cpu(cpu.library, cpu.isa, threads), Dtype.FP8, Groups(64), Fp8Rows(codes, torch.ones(300, 1), 64))
        assert (matrix.multiply(torch.ones(3, 64), None) == 2.0**-3).all()
        assert (matrix.lookup(torch.arange(300)) == 2.0**-9).all()
        assert float(torch.tensor([1e-40]) * 2) == 0
    finally:
        torch.set_flush_denormal(False)


def test_int8_codes_are_kept_with_their_scales(cpu: Cpu) -> None:
    rng = torch.Generator().manual_seed(1)
    codes, scales = torch.randint(0, 256, (40, 90), dtype=torch.uint8, generator=rng), torch.rand(40, 1, generator=rng)
    matrix = Matrix(Weights(cpu), 40, 90, Dtype.INT8)
    matrix.pack_codes(codes, scales, None, 0)
    assert torch.equal(matrix.lookup(torch.arange(40)), (codes.float() - 128) * scales)


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["scales", "offsets"])
def test_scales_and_offsets_that_are_not_finite_are_refused(cpu: Cpu, part: str, spoiled: float) -> None:
    matrix = Matrix(Weights(cpu), 4, 64, Dtype.CODES4, groups=Groups(32, has_offsets=True))
    values = {"scales": torch.ones(4, 2), "offsets": torch.zeros(4, 2)}
    values[part][3, 1] = spoiled
    with pytest.raises(NotFinite):
        matrix.pack_codes(torch.zeros(4, 64, dtype=torch.uint8), values["scales"], values["offsets"], 0)


def test_memory_is_that_of_codes_scales_and_offsets(cpu: Cpu) -> None:
    for dtype, groups, bits in (
        (Dtype.CODES4, Groups(128), 4.25),
        (Dtype.CODES4, Groups(32, has_offsets=True), 6.0),
        (Dtype.CODES8, Groups(16), 10.0),
        (Dtype.FP8, Groups(128), 8.25),
    ):
        weights = Weights(cpu)
        Matrix(weights, 512, 1024, dtype, groups=groups)
        assert weights.num_bytes == 512 * 1024 * bits / 8
