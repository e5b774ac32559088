"""Guesses with the model's own first layers, verified by the rest of them (LayerSkip, Elhoushi et al., 2024, arXiv 2404.16710).

An exit after a few layers says what comes next; the model goes over it with all its layers and takes what they agree on. There is
no second model, and no second cache: the keys, values and states that guessing leaves are those that verifying would begin with.

Shape suffixes: R lines · V vocabulary of the guesses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.draft import NO_DRAFT, Draft
from hasten.decoding.candidates import candidates
from hasten.decoding.drafters.base import Line, PacedDrafter, Seen
from hasten.decoding.growing_tree import Grove, GrowingTree, Growth
from hasten.decoding.pace import Pace
from hasten.decoding.step_costs import StepCosts


def best_depth(agreements: Mapping[int, float], cost: Callable[[int], float], most: int = 6) -> int:
    """The exit whose guesses should give the most tokens a second, of chains of up to ``most`` guesses.

    ``agreements``: how often each exit is right, by its number of layers. ``cost``: of a guess after so many layers, as a share of
    a plain step. Verifying goes on from what was computed for guesses, so a round costs one step more than its guesses do.
    """

    def speed_up(depth: int) -> float:
        right, share = agreements[depth], cost(depth)
        return max(sum(right**i for i in range(count + 1)) / (1 + count * share) for count in range(1, most + 1))

    return max(agreements, key=speed_up)


class FirstLayers(Protocol):
    """The layers that guess, over the cache of the whole model."""

    def begin(self) -> None:
        """A new round: what was computed for guesses of the last one is forgotten."""
        ...

    def token_ids(self, columns: Tensor) -> Tensor:
        """Columns of the logits -> the model's tokens."""
        ...

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> tuple[list[int], Tensor]:
        """Computes (sequence, position, token) of several lines; the tokens before are computed, or were, in this round.

        Returns which of them found room, and their logits [R, V], float32.
        """
        ...


@dataclass(slots=True)
class _Guess:
    line: Line
    tree: GrowingTree  # without branches: rows that branch could not go on from the states that guessing has left
    token_ids: list[int] = field(default_factory=list)

    @property
    def chance(self) -> float:
        """That all of it is right, by what is believed of the exit."""
        return self.tree.nodes[-1].chance if self.token_ids else 1.0

    def add(self, token_id: int, said: float) -> None:
        self.tree.add(len(self.token_ids) - 1, [(token_id, said)], self.line.request.params.greedy)
        self.token_ids.append(token_id)

    @property
    def next(self) -> tuple[int, int, int]:
        """What has to be computed to guess one more token."""
        position = len(self.line.token_ids) - 1 + len(self.token_ids)
        return self.line.sequence_id, position, self.token_ids[-1] if self.token_ids else self.line.token_ids[-1]

    @property
    def room(self) -> int:
        """Tokens that may still be guessed."""
        return self.line.room - len(self.token_ids)


class SelfSpeculation(PacedDrafter):
    def __init__(self, layers: FirstLayers, *, costs: StepCosts, num_tokens: int = 4) -> None:
        """``costs`` of the steps that verify."""
        self._layers, self._costs, self.num_tokens = layers, costs, num_tokens
        self._pace, self._grove = Pace(), Grove()

    @property
    def taps(self) -> tuple[int, ...]:
        return ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        return self._pace.cost(num_lines, num_tokens)

    def backlog(self, lines: Sequence[Line]) -> float:
        return 0.0

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    def watch(self, lines: Sequence[Line], seen: Seen) -> None:
        self._layers.begin()

    @torch.inference_mode()
    def guess(self, lines: Sequence[Line]) -> list[Draft]:
        self._grove.judge(lines)
        guesses = [_Guess(line, self._grove.plant(line)) for line in lines if line.room]
        growth = Growth([guess.tree for guess in guesses], self.num_tokens, self._costs, self._pace)
        active, made = guesses, 0
        while active and made < self.num_tokens:
            begin, asked = time.perf_counter(), len(active)
            active = self._advance(active, made)
            made += 1
            if active:
                self._pace.note(asked, time.perf_counter() - begin)
                least = growth.least(len(active), made)
                active = [guess for guess in active if guess.room > 0 and guess.chance >= least]
        if guesses:
            self._pace.note_round(len(guesses), self.num_tokens, made)
        drafts = {guess.line.sequence_id: draft for guess, draft in zip(guesses, growth.drafts(made), strict=True)}
        return [drafts.get(line.sequence_id, NO_DRAFT) for line in lines]

    def _advance(self, guesses: list[_Guess], ahead: int) -> list[_Guess]:
        """One more token for each guess that finds room."""
        places, logits_RV = self._layers.step([guess.next for guess in guesses])
        advanced = [guesses[place] for place in places]
        if advanced:
            lines = [guess.line for guess in advanced]
            token_R1, chance_R1 = candidates(logits_RV, lines, [ahead] * len(lines), self._layers.token_ids, 1)
            for guess, token, chance in zip(advanced, token_R1[:, 0].tolist(), chance_R1[:, 0].tolist(), strict=True):
                guess.add(token, chance)
        return advanced
