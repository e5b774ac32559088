"""What steps are believed to cost: worked out by hand, and against steps of known cost."""

from __future__ import annotations

import random

import pytest

from hasten.speculative.step_costs import StepCosts


def test_costs_between_sizes_beyond_them_and_as_they_drift() -> None:
    costs = StepCosts({1: 1.0, 4: 0.9, 8: 2.0})
    assert [costs.seconds(n) for n in (1, 4, 6, 8, 12)] == pytest.approx([0.9, 0.9, 1.45, 2.0, 3.1])
    for _ in range(100):
        costs.note(4, 1.5)
    # Half of it is put down to longer texts, which every size has.
    assert costs.seconds(4) == pytest.approx(1.5, abs=0.01) and costs.seconds(8) == pytest.approx(2.3, abs=0.01)
    costs.note(4, 100.0)
    assert costs.seconds(4) == pytest.approx(1.5, abs=0.01)


def test_a_size_that_was_measured_wrongly_is_put_right_by_its_own_steps() -> None:
    true = {1: 1.0, 4: 1.0, 8: 1.2, 16: 2.0}
    costs = StepCosts({1: 1.0, 4: 1.8, 8: 1.8, 16: 1.1})
    for _ in range(400):
        for size, seconds in true.items():
            costs.note(size, seconds)
    assert [costs.seconds(size) for size in true] == pytest.approx(list(true.values()), abs=0.02)
    assert costs.seconds(12) == pytest.approx(1.6, abs=0.02) and costs.seconds(24) == pytest.approx(2.8, abs=0.05)


@pytest.mark.parametrize("size", [6, 28, 36, 100, 600])
def test_steps_far_beyond_the_last_size_are_followed_to_what_they_take(size: int) -> None:
    """One point moves a step that far out by many times its own change."""
    costs, draw = StepCosts({1: 0.25, 2: 0.26, 3: 0.27, 4: 0.28}), random.Random(size)
    true = 0.28 + 0.01 * (size - 4)
    for _ in range(2000):
        costs.note(size, true * draw.uniform(0.97, 1.03))
    assert costs.seconds(size) == pytest.approx(true, rel=0.03)
    assert costs.seconds(1) == pytest.approx(0.25, abs=0.06)


def test_a_disturbance_is_passed_over_and_a_new_state_of_things_is_not() -> None:
    costs = StepCosts({1: 1.0, 8: 2.0})
    for _ in range(100):
        for seconds in (9.0, 9.0, 1.0):  # now and then something else runs, for two steps
            costs.note(1, seconds)
    assert costs.seconds(1) == pytest.approx(1.0)
    for _ in range(10):
        costs.note(1, 9.0)
    assert costs.seconds(1) == pytest.approx(9.0, abs=0.1) and costs.seconds(8) == pytest.approx(10.0, abs=0.1)
