"""``FewWords``: a runner whose model projects to a part of its vocabulary, for whoever expects all of it.

Shape suffixes: R rows whose logits are wanted · D tokens that the model projects to · V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core.plan import Runner, RunnerOutput, SlotMove, StepPlan


class FewWords:
    """Tokens that are not among ``token_ids`` [D] have no chance."""

    def __init__(self, runner: Runner, token_ids: Tensor, vocab_size: int) -> None:
        self._runner, self._token_ids, self._vocab_size = runner, token_ids, vocab_size

    def run(self, plan: StepPlan) -> RunnerOutput:
        output = self._runner.run(plan)
        logits_RV = torch.full((len(output.logits), self._vocab_size), -math.inf)
        if len(output.logits):
            logits_RV[:, self._token_ids] = output.logits
        return dataclasses.replace(output, logits=logits_RV)

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)
