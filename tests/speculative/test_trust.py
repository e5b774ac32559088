"""Trust learns the share of guesses that come true, whatever their guesser says of them."""

from __future__ import annotations

import math
import random

import pytest

from hasten.speculative.trust import Trust


def share(said: float, shift: float) -> float:
    """What comes true of guesses of which ``said`` is said: other odds by a factor."""
    odds = said / (1 - said) * math.exp(shift)
    return odds / (1 + odds)


def taught(trust: Trust, draw: random.Random, kind: str, shift: float, count: int) -> Trust:
    for _ in range(count):
        said = draw.random()
        trust.note(kind, said, right=draw.random() < share(said, shift))
    return trust


@pytest.mark.parametrize("shift", [-1.5, 0.0, 2.0])
def test_a_chance_is_the_share_that_came_true(shift: float) -> None:
    trust = taught(Trust(), random.Random(0), "greedy", shift, 6000)
    for said in (0.05, 0.15, 0.3, 0.5, 0.7, 0.9):
        assert trust.chance("greedy", said) == pytest.approx(share(said, shift), abs=0.12)


def test_what_nobody_has_judged_is_as_likely_as_it_is_said_to_be() -> None:
    trust = taught(Trust(), random.Random(0), "greedy", 2.0, 500)
    assert [trust.chance("drawn", said) for said in (0.0, 0.2, 1.0)] == [0.0, 0.2, 1.0]
    assert trust.chance("drawn", math.nan) == 0.0


def test_a_few_verdicts_change_little_and_a_hundred_nearly_all() -> None:
    trust = Trust()
    trust.note("greedy", 0.2, right=True)
    assert 0.2 < trust.chance("greedy", 0.2) < 0.5
    for _ in range(100):
        trust.note("greedy", 0.2, right=True)
    assert trust.chance("greedy", 0.2) > 0.9
    assert trust.chance("greedy", 0.8) == 0.8, "that says nothing of surer ones"


def test_another_text_is_learned_anew() -> None:
    draw = random.Random(0)
    trust = taught(taught(Trust(), draw, "greedy", 2.0, 6000), draw, "greedy", -2.0, 4000)
    for said in (0.2, 0.5, 0.8):
        assert trust.chance("greedy", said) == pytest.approx(share(said, -2.0), abs=0.15)


def test_what_is_no_chance_teaches_nothing() -> None:
    trust = Trust()
    trust.note("greedy", math.nan, right=True)
    trust.note("greedy", 0.0, right=True)
    assert trust.chance("greedy", 0.01) == 0.01
