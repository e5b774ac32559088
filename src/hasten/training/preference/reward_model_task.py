"""``RewardModelTask``: trains a reward model on pairs (Ouyang et al., 2022, arXiv 2203.02155).

Shape suffixes: P pairs · B = 2·P sequences, the chosen ones first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hasten.training.corpus import Batch
from hasten.training.preference.recipes import RewardModelRecipe
from hasten.training.preference.reward_model import RewardModel


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardScore:
    """Sums over pairs. They add up over batches."""

    num_pairs: int
    loss: float
    num_right: int  # pairs whose chosen output scores higher
    margin: float  # score of the chosen output less that of the rejected one

    def __add__(self, other: RewardScore) -> RewardScore:
        return RewardScore(
            num_pairs=self.num_pairs + other.num_pairs,
            loss=self.loss + other.loss,
            num_right=self.num_right + other.num_right,
            margin=self.margin + other.margin,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.num_pairs)

    @property
    def accuracy(self) -> float:
        return self.num_right / max(1, self.num_pairs)

    def as_dict(self) -> dict[str, Any]:
        margin = self.margin / max(1, self.num_pairs)
        return {"loss": self.mean_loss, "pairs": self.num_pairs, "accuracy": self.accuracy, "margin": margin}

    def describe(self) -> str:
        return f"accuracy {self.accuracy:.1%}"


class RewardModelTask:
    """Its batches are those of ``PreferencePairs``."""

    def __init__(self, model: RewardModel, recipe: RewardModelRecipe) -> None:
        self.model, self.recipe = model, recipe

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self.model.parameters()

    def loss(self, batch: Batch) -> Tensor:
        chosen_P, rejected_P = self.model.rewards(batch).chunk(2)
        loss_P = -logsigmoid(chosen_P - rejected_P) + self.recipe.center * (chosen_P + rejected_P) ** 2
        return loss_P.mean()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> RewardScore:
        """Return the loss without the weight on the scores' size."""
        chosen_P, rejected_P = self.model.rewards(batch).chunk(2)
        margin_P = (chosen_P - rejected_P).double()
        return RewardScore(
            num_pairs=len(margin_P),
            loss=float(-logsigmoid(margin_P).sum()),
            num_right=int((margin_P > 0).sum()),
            margin=float(margin_P.sum()),
        )

    def save(self, folder: Path, score: RewardScore) -> None:
        self.model.write(folder)
