"""``AcceptanceCalibration`` learns acceptance rates from miscalibrated draft probabilities."""

from __future__ import annotations

import math
import random

import pytest

from hasten.speculative.acceptance_calibration import AcceptanceCalibration
from hasten.speculative.draft_tree import DraftTree


def acceptance_rate(draft_prob: float, shift: float) -> float:
    """Return the true rate: its odds differ from the drafter's odds by the factor exp(``shift``)."""
    odds = draft_prob / (1 - draft_prob) * math.exp(shift)
    return odds / (1 + odds)


def probability(calibration: AcceptanceCalibration, source: str, draft_prob: float) -> float:
    tree = DraftTree(calibration)
    (node,) = tree.add_choices(-1, [(1, draft_prob)], source)
    return tree.nodes[node].acceptance_prob


def record(calibration: AcceptanceCalibration, source: str, draft_prob: float, accepted: bool) -> None:
    tree = DraftTree(calibration)
    tree.add_choices(-1, [(1, draft_prob)], source)
    tree.record_acceptance([1 if accepted else 2])


def train(calibration: AcceptanceCalibration, draw: random.Random, source: str, shift: float, count: int) -> AcceptanceCalibration:
    for _ in range(count):
        draft_prob = draw.random()
        record(calibration, source, draft_prob, draw.random() < acceptance_rate(draft_prob, shift))
    return calibration


@pytest.mark.parametrize("shift", [-1.5, 0.0, 2.0])
def test_probabilities_converge_to_acceptance_rates(shift: float) -> None:
    calibration = train(AcceptanceCalibration(), random.Random(0), "greedy", shift, 6000)
    for draft_prob in (0.05, 0.15, 0.3, 0.5, 0.7, 0.9):
        expected = pytest.approx(acceptance_rate(draft_prob, shift), abs=0.12)
        assert probability(calibration, "greedy", draft_prob) == expected


def test_without_outcomes_the_draft_probability_is_kept() -> None:
    calibration = train(AcceptanceCalibration(), random.Random(0), "greedy", 2.0, 500)
    assert [probability(calibration, "sampled", draft_prob) for draft_prob in (0.0, 0.2, 1.0)] == [0.0, 0.2, 1.0]
    assert probability(calibration, "sampled", math.nan) == 0.0


def test_few_outcomes_change_little_and_a_hundred_nearly_all() -> None:
    calibration = AcceptanceCalibration()
    record(calibration, "greedy", 0.2, accepted=True)
    assert 0.2 < probability(calibration, "greedy", 0.2) < 0.5
    for _ in range(100):
        record(calibration, "greedy", 0.2, accepted=True)
    assert probability(calibration, "greedy", 0.2) > 0.9
    assert probability(calibration, "greedy", 0.8) == 0.8, "draft probabilities far apart are calibrated separately"


def test_a_change_of_acceptance_rates_is_learned() -> None:
    draw = random.Random(0)
    calibration = train(train(AcceptanceCalibration(), draw, "greedy", 2.0, 6000), draw, "greedy", -2.0, 4000)
    for draft_prob in (0.2, 0.5, 0.8):
        assert probability(calibration, "greedy", draft_prob) == pytest.approx(acceptance_rate(draft_prob, -2.0), abs=0.15)


@pytest.mark.parametrize("draft_prob", [math.nan, 0.0])
def test_invalid_draft_probabilities_are_not_recorded(draft_prob: float) -> None:
    calibration = AcceptanceCalibration()
    record(calibration, "greedy", draft_prob, accepted=True)
    assert probability(calibration, "greedy", 0.01) == 0.01


def test_a_specific_kind_starts_from_its_general_kind() -> None:
    calibration = AcceptanceCalibration()
    for _ in range(200):
        calibration.record(("text", ("text", 0)), accepted=True)
    assert calibration.probability(("text", ("text", 7)), 0.5) > 0.95
    for _ in range(200):
        calibration.record((("text", 7),), accepted=False)
    assert calibration.probability(("text", ("text", 7)), 0.5) < 0.1
    assert calibration.probability(("text", ("text", 0)), 0.5) > 0.95
