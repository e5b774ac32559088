"""GPTQ equals optimal brain quantisation by brute force: the inverse of the remaining Hessian anew for each input.

Scales are float16: with the exact quotient of the largest weight, this weight would lie halfway between two codes.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tests.compress.quantize.matrices import correlated, grid, heavy_tailed, measured, output_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hasten.compress.quantize.grid import Grid
from hasten.compress.quantize.rounding.gptq import METHOD
from hasten.compress.quantize.rounding.rtn import METHOD as RTN
from hasten.compress.quantize.statistics import InputStatistics
from hasten.core.errors import CheckpointError, InvalidOption


def brute_force(weights: Tensor, of: Grid, hessian: Tensor, *, act_order: bool, damping: float = 0.01) -> Tensor:
    """Return the codes, one row, one input and one inverse at a time, in float64."""
    num_inputs, size, codes = len(hessian), of.spec.group_size or len(hessian), torch.zeros(weights.shape)
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(num_inputs)
    is_dead = hessian.diagonal() == 0
    damped[is_dead, is_dead] = 1
    order = sorted(range(num_inputs), key=lambda i: -float(hessian[i, i])) if act_order else list(range(num_inputs))
    for row, row_weights in enumerate(weights.double().masked_fill(is_dead, 0)):
        w, remaining = row_weights.clone(), list(order)
        fitted = {g: scale_of(row_weights[g * size : (g + 1) * size], of) for g in range(num_inputs // size)}
        for i in order:
            if not act_order and i % size == 0:
                fitted[i // size] = scale_of(w[i : i + size], of)
            scale, zero = fitted[i // size]
            code = min(max(round(float(w[i]) / scale) + zero, 0), of.largest)
            codes[row, i] = code
            inverse = torch.linalg.inv(damped[remaining][:, remaining])
            at = remaining.index(i)
            change = (w[i] - (code - zero) * scale) / inverse[at, at]
            w[remaining] -= change * inverse[at]
            remaining.remove(i)
    return codes.to(torch.uint8)


def scale_of(weights: Tensor, of: Grid) -> tuple[float, int]:
    low, high = min(float(weights.min()), 0), max(float(weights.max()), 0)
    reach = high - low if of.spec.zero is None else 2 * max(-low, high)
    scale = float(torch.tensor(reach / of.largest, dtype=torch.float16)) or 1.0
    if of.spec.zero is not None:
        return scale, of.spec.zero
    return scale, min(max(round(-low / scale), 0), of.largest)


@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "natural"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "offsets"])
@pytest.mark.parametrize(
    "group_size, block_size", [(None, 128), (None, 5), (4, 128), (4, 3), (6, 4), (12, 8)], ids=lambda size: str(size)
)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_codes_are_those_of_optimal_brain_quantisation(
    bits: int, group_size: int | None, block_size: int, symmetric: bool, act_order: bool
) -> None:
    """Groups and blocks of all sizes: smaller, larger, and with other ends."""
    weights, statistics = heavy_tailed(6, 12, seed=bits), measured(correlated(40, 12, seed=bits))
    of = grid(bits, group_size, symmetric=symmetric)
    rows = METHOD(act_order=act_order, block_size=block_size).quantize(weights, of, statistics, "w")
    expected = brute_force(weights, of, statistics.hessian_II, act_order=act_order)
    assert torch.equal(rows.codes_OI, expected)
    assert not torch.equal(rows.codes_OI, RTN().quantize(weights, of, None, "w").codes_OI)


@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "natural"])
def test_inputs_that_are_always_zero_get_zero_weights(act_order: bool) -> None:
    x = correlated(40, 12)
    x[:, [0, 7]] = 0
    weights, statistics, of = heavy_tailed(6, 12), measured(x), grid(3, 4)
    rows = METHOD(act_order=act_order).quantize(weights, of, statistics, "w")
    assert (rows.dequantize()[:, [0, 7]] == 0).all()
    assert torch.equal(rows.codes_OI, brute_force(weights, of, statistics.hessian_II, act_order=act_order))


def test_inputs_that_are_all_zero_give_a_matrix_of_zeros() -> None:
    rows = METHOD().quantize(heavy_tailed(4, 8), grid(3, 4), measured(torch.zeros(5, 8)), "w")
    assert (rows.dequantize() == 0).all()


@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "natural"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("clip", ["none", "mse", "percentile", "output"])
def test_outputs_are_closer_than_those_of_rounding_to_nearest(bits: int, clip: str, act_order: bool) -> None:
    weights, statistics = heavy_tailed(64, 256), measured(correlated(1024, 256))
    of = grid(bits, 64, clip=clip)
    ours, nearest = (m.quantize(weights, of, statistics, "w") for m in (METHOD(act_order=act_order), RTN()))
    error, error_of_nearest = (output_error(rows.dequantize() - weights, statistics) for rows in (ours, nearest))
    assert error.sum() < (0.5 if act_order else 0.85) * error_of_nearest.sum()
    assert (error < error_of_nearest).float().mean() > (0.99 if act_order else 0.8)


def test_activation_order_keeps_the_scales_of_rounding_to_nearest() -> None:
    weights, of = heavy_tailed(16, 64), grid(symmetric=False, clip="mse")
    ours, nearest = (m.quantize(weights, of, measured(correlated(99, 64)), "w") for m in (METHOD(), RTN()))
    assert torch.equal(ours.scales_OG, nearest.scales_OG) and torch.equal(ours.zeros, nearest.zeros)


def test_the_block_size_does_not_change_the_codes() -> None:
    weights, statistics = heavy_tailed(32, 192), measured(correlated(512, 192))
    for act_order in (True, False):
        codes = [METHOD(act_order, block_size=s).quantize(weights, grid(), statistics, "w").codes_OI for s in (1, 48, 128, 4096)]
        assert all(torch.equal(codes[0], others) for others in codes[1:])


def indefinite(lowest: float) -> InputStatistics:
    """Return a Hessian of mean diagonal 1 whose lowest eigenvalue is ``lowest``."""
    statistics = InputStatistics.empty(8, with_hessian=True)
    statistics.num_tokens, statistics.square_sum_II = 1, torch.eye(8)
    statistics.square_sum_II[2, 5] = statistics.square_sum_II[5, 2] = 1 - lowest
    return statistics


def test_damping_doubles_until_the_hessian_factorises() -> None:
    weights, of, statistics = heavy_tailed(64, 8), grid(3, 4), indefinite(-0.03)
    codes = METHOD().quantize(weights, of, statistics, "w").codes_OI
    assert torch.equal(codes, brute_force(weights, of, statistics.hessian_II, act_order=True, damping=0.04))
    assert torch.equal(codes, METHOD(damping=0.04).quantize(weights, of, statistics, "w").codes_OI)
    with pytest.raises(CheckpointError, match=r"the Hessian of 'layers\.3\.up' does not factorise: got a damping of up to 0\.03"):
        METHOD(max_damping=0.03).quantize(weights, of, statistics, "layers.3.up")


def test_damping_changes_the_codes() -> None:
    weights, statistics = heavy_tailed(8, 32), measured(correlated(64, 32))
    for damping in (0.001, 0.5):
        codes = METHOD(damping=damping).quantize(weights, grid(3), statistics, "w").codes_OI
        assert torch.equal(codes, brute_force(weights, grid(3), statistics.hessian_II, act_order=True, damping=damping))


def test_a_hessian_that_never_factorises_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="the Hessian of 'w' does not factorise"):
        METHOD().quantize(heavy_tailed(6, 8), grid(3, 4), indefinite(-3), "w")


def test_inputs_without_tokens_or_with_infinite_values_are_an_error() -> None:
    with pytest.raises(CheckpointError, match="no calibration token reached 'w'"):
        METHOD().quantize(heavy_tailed(6, 8), grid(3, 4), InputStatistics.empty(8, with_hessian=True), "w")
    for value in (float("inf"), float("nan")):
        x = correlated(9, 8)
        x[3, 2] = value
        with pytest.raises(CheckpointError, match="inputs of 'w' are not finite"):
            METHOD().quantize(heavy_tailed(6, 8), grid(3, 4), measured(x), "w")


@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "natural"])
def test_weights_that_are_not_finite_or_overflow_are_an_error(act_order: bool) -> None:
    weights, statistics = heavy_tailed(6, 8), measured(correlated(40, 8))
    weights[1, 6] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        METHOD(act_order=act_order).quantize(weights, grid(3, 4), statistics, "w")
    with pytest.raises(CheckpointError, match="overflow in GPTQ"):
        METHOD(act_order=act_order).quantize(
            heavy_tailed(6, 8) * 1e38, grid(3, 8, scale_dtype=torch.float32), measured(correlated(40, 8) * 1e9), "w"
        )


class LiveBytes(TorchDispatchMode):
    """The most bytes that the tensors made by operations take at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = (weakref.ref(storage), storage.nbytes())
        self.storages = {key: kept for key, kept in self.storages.items() if kept[0]() is not None}
        self.most = max(self.most, sum(nbytes for _, nbytes in self.storages.values()))
        return result


def test_three_matrices_of_the_hessians_size_are_in_memory() -> None:
    """With few outputs, these copies are nearly all of the memory."""
    size = 1024
    weights, statistics = heavy_tailed(4, size), measured(torch.randn(64, size, generator=torch.Generator().manual_seed(0)))
    with LiveBytes() as live:
        METHOD().quantize(weights, grid(4, 128), statistics, "w")
    assert 2 * 4 * size**2 < live.most < 3.3 * 4 * size**2


def test_rows_do_not_depend_on_each_other() -> None:
    weights, statistics = heavy_tailed(64, 128), measured(correlated(512, 128))
    for act_order in (True, False):
        for symmetric in (True, False):
            method, of = METHOD(act_order=act_order), grid(symmetric=symmetric)
            rows = method.quantize(weights, of, statistics, "w")
            for some in (slice(0, 1), slice(7, 40), slice(60, 64)):
                assert torch.equal(method.quantize(weights[some], of, statistics, "w").codes_OI, rows.codes_OI[some])


def test_nothing_given_is_changed() -> None:
    weights, statistics = heavy_tailed(8, 32), measured(correlated(64, 32))
    kept, hessian = weights.clone(), statistics.square_sum_II.clone()
    METHOD().quantize(weights, grid(), statistics, "w")
    assert torch.equal(weights, kept) and torch.equal(statistics.square_sum_II, hessian)


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(InvalidOption, match="damping=0 "):
        METHOD(damping=0)
    with pytest.raises(InvalidOption, match=r"max_damping=0\.001"):
        METHOD(damping=0.01, max_damping=0.001)
