"""``DpoTask``: trains a model to prefer chosen outputs, as far as it stays near a reference.

Shape suffixes: P pairs · B = 2·P sequences, the chosen ones first · N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hasten.core.errors import CheckpointError
from hasten.training.corpus import Batch
from hasten.training.preference.output_logprobs import LanguageModel, output_lengths, output_logprobs, sequence_sums
from hasten.training.preference.preference_pairs import PairBatch, PreferencePairs
from hasten.training.preference.recipes import DpoRecipe
from hasten.training.trainable_model import TrainableModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoScore:
    """Sums over pairs. They add up over batches."""

    num_pairs: int
    loss: float
    num_right: int  # pairs whose chosen output gained more probability than the rejected one
    margin: float  # gain of the chosen output less that of the rejected one, in nats

    def __add__(self, other: DpoScore) -> DpoScore:
        return DpoScore(
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

    @property
    def mean_margin(self) -> float:
        return self.margin / max(1, self.num_pairs)

    def as_dict(self) -> dict[str, Any]:
        return {"loss": self.mean_loss, "pairs": self.num_pairs, "accuracy": self.accuracy, "margin": self.mean_margin}

    def describe(self) -> str:
        return f"accuracy {self.accuracy:.1%}, margin {self.mean_margin:.3f} nats"


class DpoTask:
    """Its batches are those of ``PreferencePairs.with_reference``."""

    def __init__(self, student: TrainableModel, recipe: DpoRecipe, side_files_of: Path) -> None:
        self.student, self.recipe, self._side_files_of = student, recipe, side_files_of

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.student.decoder.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        loss_P, _ = self._losses(batch)
        return loss_P.mean()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> DpoScore:
        loss_P, margin_P = self._losses(batch)
        sums = float(loss_P.double().sum()), float(margin_P.double().sum())
        return DpoScore(num_pairs=len(loss_P), loss=sums[0], num_right=int((margin_P > 0).sum()), margin=sums[1])

    def save(self, folder: Path, score: DpoScore) -> None:
        self.student.write(folder, self._side_files_of)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the margin in nats of each pair."""
        assert isinstance(batch, PairBatch) and batch.reference_B is not None
        gains_B = sequence_sums(output_logprobs(self.student, batch), batch) - batch.reference_B
        chosen_P, rejected_P = gains_B.chunk(2)
        margin_P = chosen_P - rejected_P
        if self.recipe.loss == "ipo":
            chosen_P, rejected_P = (gains_B / output_lengths(batch)).chunk(2)
        return dpo_loss(chosen_P - rejected_P, self.recipe), margin_P


def dpo_loss(margin_P: Tensor, recipe: DpoRecipe) -> Tensor:
    """Return the loss of each pair, of its margin: for ipo, the difference of gains per token."""
    if recipe.loss == "ipo":
        return (margin_P - 1.0 / (2.0 * recipe.beta)) ** 2
    scaled_P = recipe.beta * margin_P
    return -logsigmoid(scaled_P) * (1.0 - recipe.label_smoothing) - logsigmoid(-scaled_P) * recipe.label_smoothing


@torch.no_grad()
def reference_logprobs(
    model: LanguageModel, pairs: PreferencePairs, size: int, should_stop: Callable[[], bool] = lambda: False
) -> Tensor | None:
    """Return the log-probabilities of all outputs, chosen and rejected, [N, 2].

    None if ``should_stop`` returned True. Raises ``CheckpointError`` if one is not finite.
    """
    parts = []
    for batch in pairs.all_batches(size):
        if should_stop():
            return None
        parts.append(sequence_sums(output_logprobs(model, batch), batch).view(2, -1).T)
    reference_N2 = torch.cat(parts)
    if not bool(reference_N2.isfinite().all()):
        raise CheckpointError("the reference gives log-probabilities that are not finite", remedy="Use an intact model")
    return reference_N2
