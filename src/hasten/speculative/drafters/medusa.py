"""Guesses by extra heads on the model's last hidden state, verified as a tree (Cai et al., 2024, arXiv 2401.10774).

All places are guessed at once, each without knowing the others' guesses. The tree is chosen from the accuracies that were measured
when the heads were trained; of its nodes those are verified that the heads find likely in their place.

Shape suffixes: R lines · E hidden size · H heads · V vocabulary of the heads · K candidates.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.core.draft import NO_DRAFT, Draft
from hasten.speculative.candidates import candidates
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest, ModelDrafter, TargetOutput
from hasten.speculative.growth import Growth
from hasten.speculative.static_tree import StaticTree
from hasten.speculative.step_costs import StepCosts

# What is assumed of heads that come without accuracies: the first guess of head i, and what each further one has of the one before.
FIRST, PER_HEAD, PER_RANK, RANKS = 0.6, 0.8, 0.35, 10


class Medusa(ModelDrafter):
    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        token_ids: Callable[[Tensor], Tensor],
        *,
        costs: StepCosts,
        layer: int,
        num_heads: int,
        accuracies: Sequence[Sequence[float]] | None = None,
        num_tokens: int = 16,
    ) -> None:
        """``logits``: hidden states after ``layer`` [R, E] -> [H, R, V]; ``token_ids``: columns of these -> the model's tokens.

        ``costs`` of the steps that verify.
        """
        self._logits, self._token_ids, self._layer = logits, token_ids, layer
        assumed = [[FIRST * PER_HEAD**head * PER_RANK**rank for rank in range(RANKS)] for head in range(num_heads)]
        self._tree = StaticTree.best(accuracies or assumed, max(num_tokens, *self.lengths))
        self._num_ranks = 1 + max(self._tree.ranks)
        self.num_tokens, self._growth = num_tokens, Growth(costs)
        self._seen = NO_TARGET_OUTPUT  # by the last step

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return (self._layer,)

    @property
    def lengths(self) -> tuple[int, ...]:
        return (2, 4, 6, 8, 12, 16, 24)

    def cost(self, num_lines: int, num_tokens: int) -> float | None:
        return self._growth.pace.seconds(num_lines)

    def backlog(self, lines: Sequence[DraftRequest]) -> float:
        return 0.0

    def shape(self, num_tokens: int) -> Draft:
        return Draft(self._tree.ranks, self._tree.parents).cut(num_tokens)

    def watch(self, lines: Sequence[DraftRequest], seen: TargetOutput) -> None:
        self._seen = seen

    @torch.inference_mode()
    def guess(self, lines: Sequence[DraftRequest]) -> list[Draft]:
        begin, seen = time.perf_counter(), self._seen
        places = {computed.line.sequence_id: computed.tokens[-1] for computed in seen.computed}
        known = [line for line in lines if line.sequence_id in places and line.room]
        if not known:
            return [NO_DRAFT] * len(lines)
        state_RE = seen.aux_hidden_states[self._layer][torch.tensor([places[line.sequence_id] for line in known])]
        token_HRK, chance_HRK = self._candidates(self._logits(state_RE), known)
        self._growth.judge(lines)
        for row, line in enumerate(known):
            self._grow(line, token_HRK[:, row], chance_HRK[:, row])
        self._growth.pace.note(len(known), time.perf_counter() - begin)
        return self._growth.drafts(lines, self.num_tokens, 1)

    def _candidates(self, logits_HRV: Tensor, lines: Sequence[DraftRequest]) -> tuple[Tensor, Tensor]:
        """Token ids, those first that the line would choose first, and how likely each is. [H, R, K]"""
        num_heads, num_lines, _ = logits_HRV.shape
        # Head 0 guesses the token after the line's last one.
        ahead = [head for head in range(num_heads) for _ in range(num_lines)]
        token_NK, chance_NK = candidates(logits_HRV.flatten(0, 1), [*lines] * num_heads, ahead, self._token_ids, self._num_ranks)
        shape = (num_heads, num_lines, -1)
        return token_NK.reshape(shape), chance_NK.reshape(shape)

    def _grow(self, line: DraftRequest, token_HK: Tensor, chance_HK: Tensor) -> None:
        ids, chances, grown = token_HK.tolist(), chance_HK.tolist(), self._growth.plant(line)
        greedy = line.request.params.greedy
        nodes = zip(self._tree.depths, self._tree.ranks, self._tree.parents, strict=True)
        for depth, rank, parent in itertools.takewhile(lambda node: node[1] < token_HK.shape[1], nodes):
            grown.add(parent, [(ids[depth][rank], chances[depth][rank])], (greedy, depth), rank)
