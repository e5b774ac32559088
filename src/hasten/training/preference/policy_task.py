"""``PolicyTask``: trains a model by the rewards of its own outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.training.corpus import Batch
from hasten.training.predicted_rows import predicted_rows
from hasten.training.preference.output_logprobs import output_kl, output_logprobs
from hasten.training.preference.policy_loss import PolicyTokens, policy_loss
from hasten.training.preference.policy_score import PolicyScore
from hasten.training.preference.policy_source import PolicyBatch
from hasten.training.preference.recipes import PolicyRecipe
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel


class PolicyTask:
    """Its batches are those of ``PolicySource``."""

    def __init__(self, student: TrainableModel, reference: TargetModel, recipe: PolicyRecipe, side_files_of: Path) -> None:
        self.student, self.reference, self.recipe, self._side_files_of = student, reference, recipe, side_files_of

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.student.decoder.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        assert isinstance(batch, PolicyBatch)
        assert batch.advantages_B is not None and batch.sampled_R is not None and batch.reference_R is not None
        logprobs_R = output_logprobs(self.student, batch, self.recipe.temperature)
        owners_R = predicted_rows(batch).rows_R // batch.ids_BS.shape[1]
        return policy_loss(PolicyTokens(logprobs_R, batch.sampled_R, batch.reference_R, owners_R), batch.advantages_B, self.recipe)

    def weight(self, batch: Batch) -> float:
        """Return the number of tokens or outputs over which the loss is a mean."""
        by_token = self.recipe.loss_mean == "token"
        return float(len(predicted_rows(batch).rows_R) if by_token else len(batch.ids_BS))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> PolicyScore:
        """Return the rewards of outputs that the model generated, and its KL from the reference."""
        assert isinstance(batch, PolicyBatch)
        kl_R = output_kl(self.student, self.reference, batch, self.recipe.temperature)
        return PolicyScore(
            num_outputs=len(batch.ids_BS),
            num_positions=len(kl_R),
            reward=float(batch.rewards_B.double().sum()),
            kl=float(kl_R.double().sum()),
            max_kl=self.recipe.max_kl,
        )

    def save(self, folder: Path, score: PolicyScore) -> None:
        self.student.write(folder, self._side_files_of)
