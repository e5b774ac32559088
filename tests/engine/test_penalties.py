"""Incremental token counts give the same penalties as counting every sequence from its start."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.history import TokenHistory
from hasten.scheduling.scheduler import Scheduler
from hasten.scheduling.sequence import Sequence
from tests.scheduling.world import FEATURES, World, WrongToken


class PenalisedWorld(World):
    """All requests have three penalties, and some steps fail. The reference counts anew for every token."""

    def step(self) -> None:
        self.runner.fail_next = self.random.random() < 0.02
        super().step()

    def _params(self, room: int) -> SamplingParams:
        draw = self.random
        penalties = {"repetition_penalty": draw.choice((0.8, 1.3)), "presence_penalty": draw.choice((-0.7, 0.9))}
        return super()._params(room).replace(frequency_penalty=draw.choice((-0.4, 0.6)), **penalties)


def run_seeds(seeds: Iterable[int]) -> set[str]:
    seen: set[str] = set()
    for seed in seeds:
        world = PenalisedWorld(seed, frozenset(FEATURES)).run(150)
        assert world.finished > 5
        seen |= world.seen
    return seen


def test_outputs_equal_the_reference_across_forks_beams_preemption_and_failed_steps() -> None:
    assert run_seeds(range(4)) >= {"fork", "beam", "preemption", "prefix cache", "abort"}


def ignore_later_tokens(patch: pytest.MonkeyPatch) -> None:
    """Only the first update of a history counts."""
    original = TokenHistory.update
    patch.setattr(TokenHistory, "update", lambda self, token_ids: self if self._length else original(self, token_ids))


def share_the_history_on_fork(patch: pytest.MonkeyPatch) -> None:
    def fork(self: Scheduler, parent: Sequence) -> Sequence:
        child = original(self, parent)
        child.history = parent.history
        return child

    original = Scheduler._fork
    patch.setattr(Scheduler, "_fork", fork)


@pytest.mark.parametrize("plant_fault", [ignore_later_tokens, share_the_history_on_fork])
def test_a_planted_fault_is_caught(plant_fault, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_fault(monkeypatch)
    with pytest.raises((WrongToken, AssertionError, IndexError)):
        run_seeds(range(4))


def test_a_history_counts_all_tokens_and_output_tokens() -> None:
    tokens = [5, 7, 5, 5, 9, 7, 2, 2, 5]
    for num_prompt_tokens in (0, 3, 9):
        history = TokenHistory(num_prompt_tokens)
        for length in (0, 2, 3, 3, 8, 9):
            history.update(tokens[:length])
            for counts, expected_tokens in (
                (history.all_tokens, tokens[:length]),
                (history.output_tokens, tokens[num_prompt_tokens:length]),
            ):
                assert dict(zip(counts.token_ids, counts.counts, strict=True)) == {
                    token: expected_tokens.count(token) for token in expected_tokens
                }
