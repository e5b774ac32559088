"""HQQ's steps equal those of the ``hqq`` package, and its error is nowhere above that of rounding to nearest.

``fixtures/hqq.safetensors`` was made with hqq 0.2.8.post1 on the CPU: 24 groups of 63 Laplace weights, the first half times 0.02,
the rest times 3. Each group is a matrix of its own, as the package stops all groups at once; their number of weights is odd, as the
mean error of an even number is flat about a zero and the step that does not lower it is a matter of float32 rounding.
Scales and zeros are those of ``Quantizer.quantize(axis=1, optimize=False)``; ``optimize_weights_proximal_legacy`` gave the zeros
after at most 1, 2, 5 and 20 steps (``moved``), and the codes after 20.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.compress.quantize.matrices import grid, heavy_tailed
from torch import Tensor

from hasten.compress.quantize.rounding.hqq import METHOD, fit_scales, fit_zeros
from hasten.compress.quantize.rounding.rtn import METHOD as RTN
from hasten.core.errors import CheckpointError, InvalidOption

STEPS = (1, 2, 5, 20)


@pytest.fixture(scope="module")
def package() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[1] / "fixtures" / "hqq.safetensors")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_real_zeros_are_those_of_the_package(package: dict[str, Tensor], bits: int) -> None:
    weights, scales = package["weights"], package[f"scales_{bits}"]
    start, moved, codes = (package[f"{part}_{bits}"] for part in ("zeros", "moved", "codes"))
    of = grid(bits, None, symmetric=False)
    for column, steps in enumerate(STEPS):
        kept_scales, zeros = METHOD(iterations=steps).descend(weights, scales, start, of, fit_zeros)
        torch.testing.assert_close(zeros[:, 0], moved[:, column], rtol=0, atol=1e-5)
        assert torch.equal(kept_scales, scales)
    assert torch.equal((weights / scales + zeros).round().clamp(0, of.largest).to(torch.uint8), codes)
    assert (moved[:, 0] != moved[:, 3]).any() and (moved[:, 2] != moved[:, 3]).any()  # some groups need many steps


def lp_error(weights: Tensor, rounded: Tensor, group_size: int, p: float = 0.7) -> Tensor:
    return (weights - rounded).double().view(len(weights), -1, group_size).abs().pow(p).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "offsets"])
@pytest.mark.parametrize("group_size", [64, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_group_is_worse_than_rounded_to_nearest(bits: int, group_size: int | None, symmetric: bool) -> None:
    """Most groups are better; at 8 bits, where steps are small, some scales do not move in float16."""
    weights, of = heavy_tailed(64, 256, seed=bits), grid(bits, group_size, symmetric=symmetric)
    ours, nearest = (
        lp_error(weights, method.quantize(weights, of, None, "w").dequantize(), group_size or 256) for method in (METHOD(), RTN())
    )
    assert (ours <= nearest * (1 + 1e-6)).all()
    assert ours.sum() < {2: 0.85, 3: 0.95, 4: 0.98, 8: 0.999}[bits] * nearest.sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_and_zeros_are_numbers_of_the_format(dtype: torch.dtype) -> None:
    weights = heavy_tailed(16, 128)
    for symmetric in (True, False):
        rows = METHOD().quantize(weights, grid(3, symmetric=symmetric, scale_dtype=dtype), None, "w")
        assert torch.equal(rows.scales_OG.to(dtype).float(), rows.scales_OG) and (rows.scales_OG > 0).all()
        zeros = torch.as_tensor(rows.zeros).float()
        assert torch.equal(zeros, zeros.round()) and zeros.min() >= 0 and zeros.max() <= 7


def test_a_step_of_the_scale_is_the_least_squares_fit() -> None:
    """One step without shrinkage equals ``numpy``'s solution of targets = scale * (codes - zero)."""
    weights, of = heavy_tailed(8, 64), grid(3, 64)
    start = of.fit(weights)
    scales, zeros = METHOD(iterations=1, beta=1e-6).descend(weights, start.scales_OG, start.zeros_OG, of, fit_scales)
    codes = of.codes(weights, start.scales_OG, start.zeros_OG) - start.zeros_OG
    for row, step, scale in zip(weights.double(), codes.double(), scales[:, 0], strict=True):
        expected = torch.linalg.lstsq(step[:, None], row[:, None]).solution.item()
        assert float(scale) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(zeros, start.zeros_OG)


def test_large_errors_are_left_out_of_the_fit() -> None:
    """With p = 0.5 and beta = 100, an error of 1 shrinks to 0.99: the fit hardly sees it."""
    weights = torch.full((1, 64), 0.1)
    weights[0, ::2] = -0.1
    weights[0, 0] = 4.0
    of = grid(2, 64)
    start, one = torch.full((1, 1), 0.1), torch.full((1, 1), 2.0)
    robust, _ = METHOD(iterations=1, p=0.5, beta=100).descend(weights, start, one, of, fit_scales)
    squared, _ = METHOD(iterations=1, beta=1e-6).descend(weights, start, one, of, fit_scales)
    assert abs(float(robust) - 0.1) < 1e-3 < abs(float(squared) - 0.1)


def test_zeros_stay_zeros() -> None:
    weights = heavy_tailed(4, 64)
    weights[1] = 0
    for symmetric in (True, False):
        rows = METHOD().quantize(weights, grid(symmetric=symmetric), None, "w")
        assert (rows.dequantize()[1] == 0).all() and rows.dequantize().isfinite().all()


def test_clipped_ranges_are_the_start() -> None:
    weights = heavy_tailed(32, 128)
    for symmetric in (True, False):
        of = grid(3, 128, symmetric=symmetric, clip="mse")
        ours, nearest = (lp_error(weights, m.quantize(weights, of, None, "w").dequantize(), 128) for m in (METHOD(), RTN()))
        assert (ours <= nearest * (1 + 1e-6)).all() and (ours < nearest).any()


def test_rows_do_not_depend_on_each_other() -> None:
    weights = heavy_tailed(64, 128)
    for symmetric in (True, False):
        of = grid(3, symmetric=symmetric)
        rows = METHOD().quantize(weights, of, None, "w")
        for some in (slice(0, 1), slice(7, 40)):
            assert torch.equal(METHOD().quantize(weights[some], of, None, "w").codes_OI, rows.codes_OI[some])


def test_chunks_do_not_change_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, of = heavy_tailed(8, 128), grid(3, symmetric=False)
    codes = METHOD().quantize(weights, of, None, "w").codes_OI
    monkeypatch.setattr("hasten.compress.quantize.rounding.hqq.CHUNK_WEIGHTS", 100)
    assert torch.equal(METHOD().quantize(weights, of, None, "w").codes_OI, codes)


def test_weights_that_are_not_finite_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        weights = heavy_tailed(4, 64)
        weights[2, 7] = value
        with pytest.raises(CheckpointError, match="not finite"):
            METHOD().quantize(weights, grid(), None, "w")


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InvalidOption, match=r"3 HQQ options are out of range: iterations=0 .*p=1\.5 .*beta=0"):
        METHOD(iterations=0, p=1.5, beta=0)
