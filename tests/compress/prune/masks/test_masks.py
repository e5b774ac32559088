"""Each method of masks against a plain formula, and what its zeros cost.

Shape suffixes: O outputs · I inputs.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.compress.quantize.matrices import correlated, heavy_tailed, measured, output_error
from torch import Tensor

from hasten.compress.prune.masks.magnitude import Magnitude
from hasten.compress.prune.masks.pattern import Pattern
from hasten.compress.prune.masks.sparsegpt import BLOCK, DAMPING, SparseGpt
from hasten.compress.prune.masks.wanda import Wanda
from hasten.compress.quantize.statistics import InputStatistics

FREE, TWO_OF_FOUR = Pattern(0.6), Pattern(0.5, is_2_4=True)


def brute_force_rows(scores: Tensor, pattern: Pattern) -> Tensor:
    """Return the zeros of each row by sorting Python numbers."""
    zeros = torch.zeros_like(scores, dtype=torch.bool)
    for row, values in enumerate(scores.tolist()):
        size = 4 if pattern.is_2_4 else len(values)
        for start in range(0, len(values), size):
            ranked = sorted(range(start, start + size), key=lambda i: (values[i], i))
            for i in ranked[: 2 if pattern.is_2_4 else round(pattern.ratio * size)]:
                zeros[row, i] = True
    return zeros


@pytest.mark.parametrize("pattern", [FREE, TWO_OF_FOUR, Pattern(0.0), Pattern(0.99)])
def test_magnitude_and_wanda_equal_sorted_python_numbers(pattern):
    weights, x = heavy_tailed(9, 40), correlated(50, 40)
    weights[:, 3] = weights[:, 2]  # equal scores
    x[:, 3] = x[:, 2]
    kept = weights.clone()
    magnitude = Magnitude().prune(weights, pattern, None, "w")
    assert magnitude.equal(weights.masked_fill(brute_force_rows(weights.abs(), pattern), 0))
    norms = torch.tensor([sum(value * value for value in column) ** 0.5 for column in x.T.tolist()])
    statistics = InputStatistics.empty(40, with_hessian=False)
    for part in x.split(7):
        statistics.add(part)
    wanda = Wanda().prune(weights, pattern, statistics, "w")
    assert wanda.equal(weights.masked_fill(brute_force_rows(weights.abs() * norms, pattern), 0))
    assert weights.equal(kept)
    assert pattern.ratio in (0.0, 0.99) or not wanda.equal(magnitude)


def optimal_brain_surgeon(weights: Tensor, hessian: Tensor, pattern: Pattern) -> Tensor:
    """Return the weights pruned one input at a time, in float64, with an explicit inverse of the inputs that are left."""
    weights = weights.double().clone()
    hessian = hessian.double()
    hessian = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    num_inputs = len(hessian)
    size = 4 if pattern.is_2_4 else BLOCK
    for start in range(0, num_inputs, size):
        stop = min(start + size, num_inputs)
        costs = torch.stack([weights[:, j] ** 2 / torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(start, stop)], dim=1)
        if pattern.is_2_4:
            zeros = brute_force_rows(costs, pattern)
        else:
            zeros = brute_force_rows(costs.reshape(1, -1), pattern).reshape(costs.shape)
        for j in range(start, stop):
            inverse = torch.linalg.inv(hessian[j:, j:])
            error = torch.where(zeros[:, j - start], weights[:, j], 0) / inverse[0, 0]
            weights[:, j:] -= error[:, None] * inverse[0]
            weights[zeros[:, j - start], j] = 0
    return weights


@pytest.mark.parametrize(("pattern", "num_inputs"), [(FREE, 96), (Pattern(0.5), 300), (TWO_OF_FOUR, 132)])
def test_sparsegpt_equals_the_plain_update_with_an_explicit_inverse(pattern, num_inputs):
    weights, statistics = heavy_tailed(8, num_inputs), measured(correlated(4 * num_inputs, num_inputs))
    kept = weights.clone()
    pruned = SparseGpt().prune(weights, pattern, statistics, "w")
    expected = optimal_brain_surgeon(weights, statistics.hessian_II, pattern)
    assert (pruned == 0).equal(expected == 0)
    assert (pruned - expected).abs().max() < 1e-5 * weights.abs().max() * num_inputs
    assert not pruned[pruned != 0].equal(weights[pruned != 0]) and weights.equal(kept)


@pytest.mark.parametrize("pattern", [Pattern(0.5), TWO_OF_FOUR])
def test_sparsegpt_costs_less_than_wanda_and_wanda_less_than_magnitude(pattern):
    for seed in range(3):
        weights, statistics = heavy_tailed(32, 256, seed), measured(correlated(1024, 256, seed))
        errors = [
            float(output_error(method.prune(weights, pattern, statistics, "w") - weights, statistics).mean())
            for method in (SparseGpt(), Wanda(), Magnitude())
        ]
        assert all(less < 0.8 * more for less, more in itertools.pairwise(errors)), errors


def test_inputs_that_are_always_zero_lose_their_weights():
    x = correlated(512, 64)
    x[:, [5, 40]] = 0
    for method in (SparseGpt(), Wanda()):
        pruned = method.prune(heavy_tailed(8, 64), Pattern(0.5), measured(x), "w")
        assert not pruned[:, [5, 40]].any() and pruned.isfinite().all()
    pruned = SparseGpt().prune(heavy_tailed(8, 64), Pattern(0.5), measured(torch.zeros(4, 64)), "w")
    assert not pruned.any()


def test_rows_in_parts_are_the_same_rows(monkeypatch):
    scores = heavy_tailed(50, 16).abs()
    whole = FREE.rows(scores)
    monkeypatch.setattr("hasten.compress.prune.masks.pattern.ROWS", 7)
    assert FREE.rows(scores).equal(whole) and whole.sum(1).eq(10).all()
