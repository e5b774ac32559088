"""Tables say what the counts say, and nothing of what was never seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.training.early_exit.reference_texts import random_exits

from hasten.layers.prompt_hash_table import PromptHashTable
from hasten.training.early_exit import tables
from hasten.training.early_exit.annotate import annotate
from hasten.training.early_exit.tables import SHRINKAGE, TextCounts, TokenCounts, budgets, largest, shallowest, text_costs
from hasten.training.target_model import TargetModel

LAYERS, DEPTH = (1, 2), 3


def test_a_token_is_what_it_was_and_a_little_what_all_are() -> None:
    ids, kl = torch.tensor([[5, 5, 6], [5, 9, 6]]), torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    counts = TokenCounts.of(ids, kl, 12)
    everything = kl.transpose(1, 2).reshape(-1, 2).double()
    for token, places in {5: [0, 1, 3], 6: [2, 5], 9: [4]}.items():
        wanted = (everything[places].sum(0) + SHRINKAGE * everything.mean(0)) / (len(places) + SHRINKAGE)
        torch.testing.assert_close(counts.kl_VD[token], wanted)
    assert counts.seen_V.nonzero()[:, 0].tolist() == [5, 6, 9]
    table = counts.table(1e9, LAYERS, DEPTH)
    assert (table[[5, 6, 9]] == 1).all() and int((table == DEPTH).sum()) == 9 and table.dtype == torch.int32
    assert (counts.table(0.0, LAYERS, DEPTH) == DEPTH).all()


def test_the_first_exit_within_the_budget_is_taken() -> None:
    kl = torch.tensor([[0.1, 0.5], [0.5, 0.1], [0.5, 0.5], [torch.inf, torch.inf]])
    assert shallowest(kl, 0.2, (3, 5), 8).tolist() == [3, 5, 8, 8]
    assert shallowest(kl, 0.1, (3, 5), 8).tolist() == [8, 8, 8, 8]


def test_a_bucket_is_the_sides_of_the_planes() -> None:
    draw = torch.Generator().manual_seed(1)
    planes, layers = torch.randn(3, 16, generator=draw), torch.arange(8, dtype=torch.int32)
    table = PromptHashTable(planes, layers)
    for _ in range(50):
        rows = torch.randn(9, 16, generator=draw)
        mean = rows.double().mean(0)
        wanted = sum(2**place for place in range(3) if float(planes[place].double() @ mean) > 0)
        assert table.layer(rows) == wanted == table.bucket(rows)


@pytest.fixture(scope="module")
def target(tiny: Callable[[str], Path]) -> TargetModel:
    return TargetModel.load(tiny("llama-gqa"))


def test_buckets_are_counted_and_thin_ones_left_alone(target: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PLANES", 2)
    exits, ids_NW = random_exits(target, LAYERS), torch.randint(3, 96, (40, 17), generator=torch.Generator().manual_seed(2))
    ids_NW[:20, :8] = torch.randint(3, 20, (20, 8), generator=torch.Generator().manual_seed(3))
    found = annotate(target, exits, ids_NW)
    counts = TextCounts.of(target, ids_NW, found, seed=1)
    table = PromptHashTable(counts.planes_PE, torch.zeros(4, dtype=torch.int32))
    buckets = [table.bucket(target.decoder.embed(ids_W[:8])) for ids_W in ids_NW]
    assert len(set(buckets)) > 1
    for bucket in range(4):
        mine = [number for number, other in enumerate(buckets) if other == bucket]
        if len(mine) < tables.THIN:
            assert counts.kl_BD[bucket].isinf().all()
        else:
            # The answer begins with what the prompt's last token says.
            torch.testing.assert_close(counts.kl_BD[bucket], found.kl_NDT[mine][:, :, 7:].double().mean((0, 2)))
    # The direction that all have in common decides nothing.
    common = torch.stack([target.decoder.embed(ids_W[:8]).mean(0) for ids_W in ids_NW]).mean(0)
    assert float((counts.planes_PE @ common).abs().max()) < 1e-4
    everything = counts.table(1e9, LAYERS, DEPTH)
    lost, layers = text_costs(target, exits, ids_NW, found, everything)
    thick = [buckets.count(bucket) >= tables.THIN for bucket in buckets]
    assert layers == pytest.approx(sum(1 if known else 3 for known in thick) / 40)
    wanted = (found.exit_nll_NDT[:, 0] - found.nll_NT)[:, 7:].mean(1)[torch.tensor(thick)].sum() / 40
    assert lost == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("limit", range(12))
def test_the_largest_budget_that_holds_is_found(limit: int) -> None:
    steps = [0.1 * step for step in range(11)]
    asked: list[float] = []

    def cost(budget: float) -> tuple[float, float]:
        asked.append(budget)
        return (0.0 if budget == 0 else 1e-3 if round(10 * budget) < limit else 1.0), 8 - budget

    budget, risk, layers = largest(steps, cost, 0.01)
    assert budget == pytest.approx(0.1 * max(0, limit - 1)) and layers == 8 - budget and risk <= 1e-3 and len(asked) <= 6


def test_budgets_go_from_nothing_to_everything() -> None:
    kl = torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = budgets(kl)
    assert steps == sorted(steps) and steps[0] == 0.0
    assert (shallowest(kl, steps[0], LAYERS, DEPTH) == DEPTH).all() and (shallowest(kl, steps[-1], LAYERS, DEPTH) == 1).all()
    assert budgets(torch.full((4, 2), torch.inf)) == [0.0]
