"""Penalties read a history that grows with its sequence; every answer must be the one that counting from the start gives."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.history import TokenHistory
from hasten.scheduling.scheduler import Scheduler
from hasten.scheduling.sequence import Sequence
from tests.scheduling.world import FEATURES, World, WrongToken


class PenalisedWorld(World):
    """Every request has all three penalties, and now and then a step fails. What is right counts anew for every token."""

    def step(self) -> None:
        self.runner.fail_next = self.random.random() < 0.02
        super().step()

    def _params(self, room: int) -> SamplingParams:
        draw = self.random
        penalties = {"repetition_penalty": draw.choice((0.8, 1.3)), "presence_penalty": draw.choice((-0.7, 0.9))}
        return super()._params(room).replace(frequency_penalty=draw.choice((-0.4, 0.6)), **penalties)


def run(seeds: Iterable[int]) -> set[str]:
    seen: set[str] = set()
    for seed in seeds:
        world = PenalisedWorld(seed, frozenset(FEATURES)).run(150)
        assert world.finished > 5
        seen |= world.seen
    return seen


def test_answers_are_those_of_counting_anew_through_forks_beams_preemption_and_failed_steps() -> None:
    assert run(range(4)) >= {"fork", "beam", "preemption", "prefix cache", "abort"}


def fall_behind(patch: pytest.MonkeyPatch) -> None:
    """What a sequence gains later is not counted. One that is counted anew is not touched by it."""
    whole = TokenHistory.update
    patch.setattr(TokenHistory, "update", lambda self, token_ids: self if self._length else whole(self, token_ids))


def fork_shares_the_history(patch: pytest.MonkeyPatch) -> None:
    def fork(self: Scheduler, parent: Sequence) -> Sequence:
        child = whole(self, parent)
        child.history = parent.history
        return child

    whole = Scheduler._fork
    patch.setattr(Scheduler, "_fork", fork)


@pytest.mark.parametrize("plant", [fall_behind, fork_shares_the_history])
def test_a_planted_fault_is_caught(plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((WrongToken, AssertionError, IndexError)):
        run(range(4))


def test_a_history_counts_what_is_there_however_it_came() -> None:
    tokens = [5, 7, 5, 5, 9, 7, 2, 2, 5]
    for num_prompt in (0, 3, 9):
        history = TokenHistory(num_prompt)
        for length in (0, 2, 3, 3, 8, 9):
            history.update(tokens[:length])
            for found, part in ((history.all_tokens, tokens[:length]), (history.output_tokens, tokens[num_prompt:length])):
                assert dict(zip(found.token_ids, found.counts, strict=True)) == {token: part.count(token) for token in part}
