"""Guesses with the model's own first layers, verified by the rest of them (LayerSkip, Elhoushi et al., 2024, arXiv 2404.16710).

An exit after a few layers says what comes next; the model goes over it with all its layers and takes what they agree on. There is
no second model, and no second cache: the keys, values and states that guessing leaves are those that verifying would begin with.

Shape suffixes: R lines · V vocabulary of the guesses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hasten.core.draft import Draft
from hasten.speculative.candidates import candidates
from hasten.speculative.draft_tree import DraftTree
from hasten.speculative.drafters.base import DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.growth import Growth
from hasten.speculative.step_costs import StepCosts


def best_depth(agreements: Mapping[int, float], cost: Callable[[int], float], most: int = 6) -> int:
    """The exit whose guesses should give the most tokens a second, of chains of up to ``most`` guesses.

    ``agreements``: how often each exit is right, by its number of layers. ``cost``: of a guess after so many layers, as a share of
    a plain step. Verifying goes on from what was computed for guesses, so a round costs one step more than its guesses do.
    """

    def speed_up(depth: int) -> float:
        right, share = agreements[depth], cost(depth)
        return max(sum(right**i for i in range(count + 1)) / (1 + count * share) for count in range(1, most + 1))

    return max(agreements, key=speed_up)


class SelfDraftRunner(Protocol):
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


class _Guess(NamedTuple):
    line: DraftRequest
    tree: DraftTree  # without branches: rows that branch could not go on from the states that guessing has left

    def grow(self, token_id: int, said: float) -> None:
        self.tree.tips = [*self.tree.add(self.tree.tips[0], [(token_id, said)], self.line.request.params.greedy)]

    @property
    def next(self) -> tuple[int, int, int]:
        """What has to be computed to guess one more token."""
        tip = self.tree.tips[0]
        token_id = self.line.token_ids[-1] if tip < 0 else self.tree.nodes[tip].token_id
        return self.line.sequence_id, len(self.line.token_ids) - 1 + self.tree.height, token_id


class SelfSpeculation(ModelDrafter):
    def __init__(self, layers: SelfDraftRunner, *, costs: StepCosts, num_tokens: int = 4) -> None:
        """``costs`` of the steps that verify."""
        self._layers, self.num_tokens, self._growth = layers, num_tokens, Growth(costs)

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return (1, 2, 3, 4, 6)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        return self._growth.pace.cost(num_lines, num_tokens)

    def backlog(self, lines: Sequence[DraftRequest]) -> float:
        return 0.0

    def shape(self, num_tokens: int) -> Draft:
        return Draft.chain(range(num_tokens))

    def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
        self._layers.begin()

    @torch.inference_mode()
    def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
        self._growth.judge(lines)
        guesses = [_Guess(line, self._growth.plant(line)) for line in lines if line.room]
        made = self._growth.grow(guesses, self.num_tokens, self.num_tokens, self._advance)
        return self._growth.drafts(lines, self.num_tokens, made)

    def _advance(self, guesses: list[_Guess]) -> list[_Guess] | None:
        """One more token for each guess that finds room."""
        begin, ahead = time.perf_counter(), guesses[0].tree.height
        places, logits_RV = self._layers.step([guess.next for guess in guesses])
        if not places:
            return None
        advanced = [guesses[place] for place in places]
        lines = [guess.line for guess in advanced]
        token_R1, chance_R1 = candidates(logits_RV, lines, [ahead] * len(lines), self._layers.token_ids, 1)
        for guess, token, chance in zip(advanced, token_R1[:, 0].tolist(), chance_R1[:, 0].tolist(), strict=True):
            guess.grow(token, chance)
        self._growth.pace.note(len(advanced), time.perf_counter() - begin)
        return advanced
