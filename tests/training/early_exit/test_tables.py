"""Exit tables follow the statistics of training text. Without statistics there is no early exit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.training.early_exit.reference_costs import random_exits

from hasten.layers.early_exit import ExitHeadsSpec, PromptHashTable
from hasten.training.early_exit import tables
from hasten.training.early_exit.exit_statistics import exit_statistics
from hasten.training.early_exit.tables import (
    SHRINKAGE,
    bucket_kl,
    budget_grid,
    calibrate_table,
    largest_budget,
    prompt_table_cost,
    shallowest_exits,
    token_kl,
)
from hasten.training.target_model import TargetModel

SPEC = ExitHeadsSpec(layers=(1, 2), num_layers=3, hidden_size=16, vocab_size=12)


def test_the_kl_of_a_token_is_shrunk_towards_the_mean() -> None:
    ids, kl = torch.tensor([[5, 5, 6], [5, 9, 6]]), torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    kl_VD = token_kl(ids, kl, 12)
    rows = kl.transpose(1, 2).reshape(-1, 2).double()
    for token, positions in {5: [0, 1, 3], 6: [2, 5], 9: [4]}.items():
        expected = (rows[positions].sum(0) + SHRINKAGE * rows.mean(0)) / (len(positions) + SHRINKAGE)
        torch.testing.assert_close(kl_VD[token], expected)
    assert kl_VD.isfinite().all(1).nonzero()[:, 0].tolist() == [5, 6, 9]
    layers = shallowest_exits(kl_VD, 1e9, SPEC)
    assert (layers[[5, 6, 9]] == 1).all() and int((layers == 3).sum()) == 9 and layers.dtype == torch.int32
    assert (shallowest_exits(kl_VD, 0.0, SPEC) == 3).all()


def test_the_first_exit_within_the_budget_is_taken() -> None:
    kl = torch.tensor([[0.1, 0.5], [0.5, 0.1], [0.5, 0.5], [torch.inf, torch.inf]])
    spec = ExitHeadsSpec(layers=(3, 5), num_layers=8, hidden_size=16, vocab_size=12)
    assert shallowest_exits(kl, 0.2, spec).tolist() == [3, 5, 8, 8]
    assert shallowest_exits(kl, 0.1, spec).tolist() == [8, 8, 8, 8]


def test_a_bucket_is_the_sides_of_the_planes() -> None:
    generator = torch.Generator().manual_seed(1)
    planes, layers = torch.randn(3, 16, generator=generator), torch.arange(8, dtype=torch.int32)
    table = PromptHashTable(planes, layers)
    for _ in range(50):
        rows = torch.randn(9, 16, generator=generator)
        mean = rows.double().mean(0)
        expected = sum(2**plane for plane in range(3) if float(planes[plane].double() @ mean) > 0)
        assert table.exit_layer(rows) == expected == table.bucket(rows)


@pytest.fixture(scope="module")
def target(tiny: Callable[[str], Path]) -> TargetModel:
    return TargetModel.load(tiny("llama-gqa"))


def test_buckets_with_few_prompts_have_no_early_exit(target: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "NUM_PLANES", 2)
    exits = random_exits(target, (1, 2))
    ids_NS = torch.randint(3, 96, (40, 17), generator=torch.Generator().manual_seed(2))
    ids_NS[:20, :8] = torch.randint(3, 20, (20, 8), generator=torch.Generator().manual_seed(3))
    statistics = exit_statistics(target, exits, ids_NS)
    planes_PE, kl_XD = bucket_kl(target, ids_NS, statistics, seed=1)
    table = PromptHashTable(planes_PE, torch.zeros(4, dtype=torch.int32))
    buckets = [table.bucket(target.decoder.embed(ids_S[:8])) for ids_S in ids_NS]
    assert len(set(buckets)) > 1
    for bucket in range(4):
        members = [number for number, other in enumerate(buckets) if other == bucket]
        if len(members) < tables.MIN_BUCKET_PROMPTS:
            assert kl_XD[bucket].isinf().all()
        else:
            # The prompt's last token predicts the first output token.
            torch.testing.assert_close(kl_XD[bucket], statistics.kl_NDT[members][:, :, 7:].double().mean((0, 2)))
    # The mean of all prompts does not affect the buckets.
    common = torch.stack([target.decoder.embed(ids_S[:8]).mean(0) for ids_S in ids_NS]).mean(0)
    assert float((planes_PE @ common).abs().max()) < 1e-4
    table = PromptHashTable(planes_PE, shallowest_exits(kl_XD, 1e9, exits.spec))
    loss, layers = prompt_table_cost(target, exits, ids_NS, statistics, table)
    exited = [buckets.count(bucket) >= tables.MIN_BUCKET_PROMPTS for bucket in buckets]
    assert layers == pytest.approx(sum(1 if each else 3 for each in exited) / 40)
    expected = (statistics.exit_nll_NDT[:, 0] - statistics.nll_NT)[:, 7:].mean(1)[torch.tensor(exited)].sum() / 40
    assert loss == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("limit", range(12))
def test_the_largest_allowed_budget_is_found(limit: int) -> None:
    budgets = [0.1 * step for step in range(11)]
    calls: list[float] = []

    def cost(budget: float) -> tuple[float, float]:
        calls.append(budget)
        return (0.0 if budget == 0 else 1e-3 if round(10 * budget) < limit else 1.0), 8 - budget

    budget, risk, layers = largest_budget(budgets, cost, 0.01)
    assert budget == pytest.approx(0.1 * max(0, limit - 1)) and layers == 8 - budget and risk <= 1e-3 and len(calls) <= 6


def test_budgets_range_from_no_exit_to_all_exits() -> None:
    kl = torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    budgets = budget_grid(kl)
    assert budgets == sorted(budgets) and budgets[0] == 0.0
    assert (shallowest_exits(kl, budgets[0], SPEC) == 3).all() and (shallowest_exits(kl, budgets[-1], SPEC) == 1).all()
    assert budget_grid(torch.full((4, 2), torch.inf)) == [0.0]


def test_a_calibrated_table_has_the_cost_of_its_budget() -> None:
    """The table is the last one of rising budgets whose loss is allowed."""
    kl = torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def cost(layers_X: torch.Tensor) -> tuple[float, float]:
        return 0.001 * int((layers_X < 3).sum()), float(layers_X.double().mean())

    table = calibrate_table(kl, SPEC, cost, 0.01)
    assert torch.equal(table.layers_X, shallowest_exits(kl, table.budget, SPEC))
    assert (table.risk, table.mean_layers) == cost(table.layers_X) and 0 < table.risk <= 0.00996
    larger = [budget for budget in budget_grid(kl) if budget > table.budget]
    assert cost(shallowest_exits(kl, larger[0], SPEC))[0] > 0.00995
