"""Rules of clipping against a search by brute force over the same ranges, and what they gain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.compress.quantize.matrices import correlated, grid, heavy_tailed, measured, output_error
from torch import Tensor

from hasten.compress.quantize.clip import MseClip, OutputClip, PercentileClip, build_clip
from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.options import CLIPS
from hasten.compress.quantize.rounding.rtn import METHOD
from hasten.compress.quantize.statistics import InputStatistics

GRIDS = [(bits, symmetric) for bits in (2, 3, 4) for symmetric in (True, False)]


def student_t(num_outputs: int, num_inputs: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(4, (num_outputs, num_inputs)).astype(np.float32)) * 0.02


def rounded(weights: Tensor, low: float, high: float, of: Grid) -> np.ndarray:
    """Return one group on the grid of a range, in NumPy."""
    low, high = min(low, 0), max(high, 0)
    reach = high - low if of.spec.zero is None else 2 * max(-low, high)
    scale = np.float32(torch.tensor(np.float32(reach) / np.float32(of.largest)).to(of.scale_dtype).float())
    zero = np.clip(np.rint(-np.float32(low) / scale), 0, of.largest) if of.spec.zero is None else of.spec.zero
    codes = np.clip(np.rint(weights.numpy() / scale) + zero, 0, of.largest)
    return (codes - zero) * float(scale)


def group_errors(weights: Tensor, of: Grid, statistics: InputStatistics | None) -> Tensor:
    """Return the error that the rule minimises, of each group as the grid rounds it."""
    size = of.group_size(weights.shape[1])
    errors = weights.double() - METHOD().quantize(weights, of, statistics, "w").dequantize().double()
    groups = [errors[:, start : start + size] for start in range(0, weights.shape[1], size)]
    if statistics is None:
        return torch.stack([group.square().sum(-1) for group in groups], 1)
    hessian = statistics.hessian_II.double()
    blocks = [hessian[start : start + size, start : start + size] for start in range(0, weights.shape[1], size)]
    return torch.stack([((group @ block) * group).sum(-1) for group, block in zip(groups, blocks, strict=True)], 1)


@pytest.mark.parametrize("bits, symmetric", GRIDS)
def test_squared_error_is_the_least_of_all_shares(bits: int, symmetric: bool) -> None:
    weights = student_t(6, 64)
    errors = group_errors(weights, grid(bits, 32, symmetric=symmetric, clip="mse"), None)
    of = grid(bits, 32, symmetric=symmetric)
    for row in range(6):
        for group, values in enumerate(weights[row].split(32)):
            low, high = values.min(), values.max()
            shares = np.arange(100, 19, -2, dtype=np.float32) / 100
            least = min(np.square(values.double().numpy() - rounded(values, low * s, high * s, of)).sum() for s in shares)
            assert float(errors[row, group]) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("bits, symmetric", GRIDS)
def test_output_error_is_the_least_of_all_bounds(bits: int, symmetric: bool) -> None:
    weights, statistics = student_t(6, 64), measured(correlated(200, 64))
    errors = group_errors(weights, grid(bits, 32, symmetric=symmetric, clip="output"), statistics)
    of, hessian = grid(bits, 32, symmetric=symmetric), statistics.hessian_II.double().numpy()
    for row in range(6):
        for group, values in enumerate(weights[row].split(32)):
            block = hessian[32 * group : 32 * group + 32, 32 * group : 32 * group + 32]
            low, high = values.min(), values.max()
            tried = []
            for share in np.arange(20, 9, -1, dtype=np.float32) / 20:
                bound = values.abs().max() * share
                delta = values.double().numpy() - rounded(values, max(low, -bound), min(high, bound), of)
                tried.append(delta @ block @ delta)
            assert float(errors[row, group]) == pytest.approx(min(tried), rel=1e-4)


@pytest.mark.parametrize("clip", ["mse", "output"])
@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("bits, symmetric", GRIDS)
def test_no_group_is_worse_than_without_clipping(bits: int, symmetric: bool, group_size: int | None, clip: str) -> None:
    weights, statistics = heavy_tailed(32, 128), measured(correlated(300, 128)) if clip == "output" else None
    clipped, full = (group_errors(weights, grid(bits, group_size, symmetric=symmetric, clip=c), statistics) for c in (clip, "none"))
    assert (clipped <= full * (1 + 1e-5)).all()
    assert clipped.sum() < 0.97 * full.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("weights", [student_t(64, 512), heavy_tailed(64, 512)], ids=["student-t", "laplace"])
@pytest.mark.parametrize("clip", ["mse", "percentile"])
def test_clipping_helps_at_3_bits(clip: str, weights: Tensor, symmetric: bool) -> None:
    """The percentile is 99: of 128 weights, 1.3 are beyond each end."""
    clipped, full = (group_errors(weights, grid(3, 128, symmetric=symmetric, clip=c), None).sum() for c in (clip, "none"))
    assert clipped < 0.95 * full


def test_output_clipping_helps_the_outputs() -> None:
    weights, statistics = student_t(64, 512), measured(correlated(1024, 512))
    clipped, full = (
        output_error(METHOD().quantize(weights, grid(3, 128, clip=rule), statistics, "w").dequantize() - weights, statistics).sum()
        for rule in ("output", "none")
    )
    assert clipped < 0.8 * full


@pytest.mark.parametrize("percentile", [60.0, 95.0, 99.9, 100.0])
def test_percentiles_are_those_of_numpy(percentile: float) -> None:
    weights = student_t(5, 96)
    groups = weights.view(5, 3, 32)
    low, high = PercentileClip(percentile).ranges(groups, grid(symmetric=False), None)
    np.testing.assert_allclose(low, np.percentile(groups, 100 - percentile, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(high, np.percentile(groups, percentile, axis=-1), rtol=1e-4)
    low, high = PercentileClip(percentile).ranges(groups, grid(), None)
    np.testing.assert_allclose(high, np.percentile(groups.abs(), percentile, axis=-1), rtol=1e-4)
    assert torch.equal(low, -high)


@pytest.mark.parametrize("clip", ["mse", "percentile", "output"])
def test_rows_and_chunks_do_not_change_the_ranges(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, statistics = student_t(48, 64), measured(correlated(200, 64))
    of = grid(3, clip=clip)
    scales = of.fit(weights, statistics).scales_OG
    assert torch.equal(of.fit(weights[5:9], statistics).scales_OG, scales[5:9])
    monkeypatch.setattr("hasten.compress.quantize.clip.CHUNK_WEIGHTS", 200)
    assert torch.equal(of.fit(weights, statistics).scales_OG, scales)


def test_only_memory_of_a_chunk_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    error = "hasten.compress.quantize.clip.rounding_error"
    monkeypatch.setattr(error, lambda weights, *others: seen.append(weights.numel()) or weights)
    MseClip().ranges(torch.ones(2048, 8, 128), grid(4, 128), None)
    OutputClip().ranges(torch.ones(2048, 8, 128), grid(4, 128), measured(torch.ones(2, 1024)))
    assert max(seen) <= 2**19 < sum(seen)


@pytest.mark.parametrize("clip", CLIPS)
def test_groups_of_zeros_stay_zeros(clip: str) -> None:
    weights, statistics = student_t(4, 64), measured(correlated(200, 64))
    weights[1] = 0
    for symmetric in (True, False):
        rows = METHOD().quantize(weights, grid(symmetric=symmetric, clip=clip), statistics, "w")
        assert (rows.dequantize()[1] == 0).all() and rows.dequantize().isfinite().all()


def test_every_rule_of_the_options_is_built() -> None:
    rules = [build_clip(name, 97.5) for name in CLIPS]
    assert rules == [None, MseClip(), PercentileClip(97.5), OutputClip()]
    assert [rule.needs_hessian for rule in rules if rule] == [False, False, True]
