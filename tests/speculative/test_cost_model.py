"""``CostModel`` and ``DraftCostModel``: worked out by hand, and against steps of known cost."""

from __future__ import annotations

import random

import pytest

from hasten.speculative import cost_model
from hasten.speculative.cost_model import CostModel, DraftCostModel


def test_costs_are_interpolated_extrapolated_and_updated() -> None:
    costs = CostModel({1: 1.0, 4: 0.9, 8: 2.0})
    assert [costs.seconds(n) for n in (1, 4, 6, 8, 12)] == pytest.approx([0.9, 0.9, 1.45, 2.0, 3.1])
    for _ in range(100):
        costs.record(4, 1.5)
    # Half of the error is attributed to longer contexts, which slow down every size.
    assert costs.seconds(4) == pytest.approx(1.5, abs=0.01) and costs.seconds(8) == pytest.approx(2.3, abs=0.01)
    costs.record(4, 100.0)
    assert costs.seconds(4) == pytest.approx(1.5, abs=0.01)


def test_a_wrong_measurement_is_corrected_by_steps_of_its_size() -> None:
    true = {1: 1.0, 4: 1.0, 8: 1.2, 16: 2.0}
    costs = CostModel({1: 1.0, 4: 1.8, 8: 1.8, 16: 1.1})
    for _ in range(400):
        for size, seconds in true.items():
            costs.record(size, seconds)
    assert [costs.seconds(size) for size in true] == pytest.approx(list(true.values()), abs=0.02)
    assert costs.seconds(12) == pytest.approx(1.6, abs=0.02) and costs.seconds(24) == pytest.approx(2.8, abs=0.05)


@pytest.mark.parametrize("size", [6, 28, 36, 100, 600])
def test_steps_far_beyond_the_last_size_are_learned_without_overshooting(size: int) -> None:
    """The last point moves a step that far out by many times its own change."""
    costs, draw = CostModel({1: 0.25, 2: 0.26, 3: 0.27, 4: 0.28}), random.Random(size)
    true = 0.28 + 0.01 * (size - 4)
    for _ in range(2000):
        costs.record(size, true * draw.uniform(0.97, 1.03))
    assert costs.seconds(size) == pytest.approx(true, rel=0.03)
    assert costs.seconds(1) == pytest.approx(0.25, abs=0.06)


def test_outliers_are_ignored_and_a_lasting_change_is_not() -> None:
    costs = CostModel({1: 1.0, 8: 2.0})
    for _ in range(100):
        for seconds in (9.0, 9.0, 1.0):  # other work slows down two of three steps
            costs.record(1, seconds)
    assert costs.seconds(1) == pytest.approx(1.0)
    for _ in range(10):
        costs.record(1, 9.0)
    assert costs.seconds(1) == pytest.approx(9.0, abs=0.1) and costs.seconds(8) == pytest.approx(10.0, abs=0.1)


def test_draft_tokens_are_allocated_only_where_the_gain_reaches_the_margin() -> None:
    costs = CostModel({1: 1.0, 2: 1.3, 3: 9.0})  # one draft token of probability 0.5: 1.5 tokens in 1.3 seconds
    assert costs.allocate([[0.5, 0.4]], 0.0) == [1]
    assert costs.allocate([[0.5, 0.4]], 0.0, margin=1.15) == [1]
    assert costs.allocate([[0.5, 0.4]], 0.0, margin=1.16) == [0]
    assert CostModel({1: 1.0, 64: 1.0}).allocate([[0.5], [], [0.9, 0.8]], 0.0) == [1, 0, 2]


def test_rounds_that_end_early_are_expected_to_make_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_model, "DRAFT_UPDATE", 0.5)
    costs = DraftCostModel()
    costs.record(1, 1.0)
    assert costs.round_seconds(1, 4) == 4.0
    costs.record_round(1, 4, 2)
    assert costs.round_seconds(1, 4) == 1 + 1 + 0.5 + 0.5
    assert costs.round_seconds(1, 1) == 1.0
    assert costs.round_seconds(1, 6) == 3.0 + 2 * 0.5  # unknown calls are as rare as the last known one
    assert costs.round_seconds(1, 2, extra_calls=1) == 3.0
    costs.record_round(1, 2, 1)
    assert costs.round_seconds(1, 4) == 1 + 0.5 + 0.5 + 0.5
    costs.record_round(1, 6, 6)
    assert costs.round_seconds(1, 6) == 1 + 5 * 0.75
    assert costs.round_seconds(2, 4) == costs.round_seconds(3, 4) == 4.0  # larger batches are counted apart
    costs.record_round(2, 4, 1)
    assert costs.round_seconds(3, 4) == 1 + 3 * 0.5


def test_a_call_costs_at_least_what_it_costs_for_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_model, "DRAFT_UPDATE", 0.5)
    costs = DraftCostModel()
    assert costs.seconds(8) is None and costs.round_seconds(8, 2) is None
    costs.record(2, 4.0)
    assert [costs.seconds(batch) for batch in (1, 2, 4)] == [None, 4.0, 4.0]
    costs.record(2, 2.0)
    assert costs.seconds(3) == 3.0


def test_prefill_is_counted_by_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_model, "DRAFT_UPDATE", 0.5)
    costs = DraftCostModel()
    assert costs.prefill_seconds(100) == 0.0
    costs.record_prefill(10, 20.0)
    assert costs.prefill_seconds(3) == 6.0
    costs.record_prefill(10, 40.0)
    assert costs.prefill_seconds(3) == 9.0
