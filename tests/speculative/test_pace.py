"""What guessing costs, as it was measured: worked out by hand."""

from __future__ import annotations

import pytest

from hasten.speculative import pace
from hasten.speculative.pace import Pace


def test_rounds_that_ended_early_make_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FOLLOWED", 0.5)
    found = Pace()
    assert found.calls(1, 4) == 4.0
    found.note_round(1, 4, 2)
    assert found.calls(1, 4) == 1 + 1 + 0.5 + 0.5
    assert found.calls(1, 1) == 1.0
    assert found.calls(1, 6) == 3.0 + 2 * 0.5  # nobody has asked for more: as seldom as the last call
    found.note_round(1, 2, 1)
    assert found.calls(1, 4) == 1 + 0.5 + 0.5 + 0.5
    found.note_round(1, 6, 6)
    assert found.calls(1, 6) == 1 + 5 * 0.75
    assert found.calls(2, 4) == found.calls(3, 4) == 4.0  # more lines are another matter
    found.note_round(2, 4, 1)
    assert found.calls(3, 4) == 1 + 3 * 0.5
    assert found.calls(1, 6) == 1 + 5 * 0.75


def test_what_was_assumed_counts_until_a_call_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FOLLOWED", 0.5)
    found = Pace()
    found.assume(2, 8.0)
    found.assume(4, 9.0)  # something is known of less
    assert [found.seconds(lines) for lines in (1, 2, 4)] == [None, 8.0, 8.0]
    found.note(2, 4.0)
    assert found.seconds(2) == 4.0
    found.note(2, 2.0)
    found.assume(2, 8.0)
    assert found.seconds(2) == 3.0


def test_calls_that_are_made_in_any_case_cost_what_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "FOLLOWED", 0.5)
    found = Pace()
    assert found.cost(1, 2, sure=1) is None
    found.note(1, 2.0)
    assert found.cost(1, 0, sure=1) == 2.0
    found.note_round(1, 2, 0)
    assert found.cost(1, 2, sure=1) == 2.0 * (1 + 2 * 0.5)
