"""``DistillTask``: trains a student on text and on what a teacher says of it.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · R predicted positions · r rows of a block · E hidden size ·
C classes of tokens · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.training.corpus import Batch
from hasten.training.distill.hidden_loss import HiddenLoss
from hasten.training.distill.logits_loss import logits_loss, logits_sums
from hasten.training.distill.losses import divergence, forward_kl
from hasten.training.distill.recipe import SFT, DistillRecipe
from hasten.training.distill.score import DistillScore
from hasten.training.distill.teacher import Teacher, TeacherOutputs
from hasten.training.predicted_rows import predicted_rows
from hasten.training.trainable_model import TrainableModel


class DistillTask:
    """The loss is the mean over predicted positions of w · cross entropy + (1 - w) · T² · divergence.

    w is ``hard_label_weight`` (1 with loss=sft) and T the temperature. The cross entropy of the text's tokens is at temperature 1.
    The gradients of a divergence shrink with 1 / T², so T² keeps the shares of both terms (Hinton et al., 2015, arXiv 1503.02531).
    ``hidden_weight`` adds the ``HiddenLoss`` to this.
    """

    def __init__(
        self,
        student: TrainableModel,
        teacher: Teacher | None,
        recipe: DistillRecipe,
        *,
        teacher_layers: int | None = None,
        teacher_hidden_size: int | None = None,
        side_files_of: Path | None = None,
        seed: int = 0,
    ) -> None:
        """``teacher`` may be None if the recipe needs none; with one, ``evaluate`` compares with it.

        A recipe with ``hidden_weight`` needs the teacher's number of layers and hidden size. ``seed`` is of the projections, and
        ``side_files_of`` the model whose tokenizer ``save`` copies.
        """
        assert teacher is not None or not recipe.needs_teacher, recipe
        self.student, self.teacher, self.recipe, self._side_files_of = student, teacher, recipe, side_files_of
        self._hard_label_weight = 1.0 if recipe.loss == SFT else recipe.hard_label_weight
        self._hidden_loss: HiddenLoss | None = None
        if recipe.hidden_weight:
            assert teacher_layers is not None and teacher_hidden_size is not None, "hidden states need the teacher's shape"
            spec, device = student.spec, student.lm_head_VE.device
            sizes = spec.num_layers, spec.hidden_size, teacher_layers, teacher_hidden_size
            self._hidden_loss = HiddenLoss.new(*sizes, seed, device)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the student's parameters and the projections, which are not saved with the student."""
        projections = {} if self._hidden_loss is None else self._hidden_loss.parameters()
        return {**dict(self.student.decoder.named_parameters()), **projections}

    def loss(self, batch: Batch) -> Tensor:
        batch, hidden_loss = self._on_device(batch), self._hidden_loss
        rows = predicted_rows(batch)
        states = self.student.hidden_states(batch.ids_BS, () if hidden_loss is None else range(self.student.spec.num_layers))
        outputs = None
        if self.teacher is not None and self.recipe.needs_teacher:
            outputs = self.teacher.outputs(batch, rows, () if hidden_loss is None else sorted(set(hidden_loss.layers)))

        def loss_of(start: int, stop: int, logits_rV: Tensor) -> Tensor:
            return self._block_loss(rows.labels_R[start:stop], outputs, start, stop, logits_rV)

        total = logits_loss(self.student.normed(states)[rows.rows_R], self.student.lm_head_VE, loss_of)
        if hidden_loss is not None and outputs is not None:
            total = total + self.recipe.hidden_weight * hidden_loss(states.aux_hidden_states, rows.rows_R, outputs.hidden_states)
        return total / max(1, len(rows.rows_R))

    def weight(self, batch: Batch) -> float:
        """Return the number of predicted positions, over which the loss is a mean."""
        return float(len(predicted_rows(batch).rows_R))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> DistillScore:
        """Return the score at temperature 1, with the teacher if there is one."""
        batch = self._on_device(batch)
        rows = predicted_rows(batch)
        normed_RE = self.student.normed(self.student.hidden_states(batch.ids_BS))[rows.rows_R]
        outputs = None if self.teacher is None else self.teacher.outputs(batch, rows)

        def sums_of(start: int, stop: int, logits_rV: Tensor) -> Tensor:
            nll = F.cross_entropy(logits_rV, rows.labels_R[start:stop], reduction="sum")
            if outputs is None:
                return nll[None]
            log_probs = outputs.log_probs(start, stop, logits_rV, 1.0)
            num_agreed = outputs.has_same_top_token(start, stop, logits_rV, log_probs).sum()
            return torch.stack([nll, forward_kl(*log_probs).sum(), num_agreed])

        count = 1 if outputs is None else 3
        nll, *compared = logits_sums(normed_RE, self.student.lm_head_VE, sums_of, count).tolist()
        kl, num_agreed = compared or (None, None)
        return DistillScore(
            num_positions=len(normed_RE),
            nll=nll,
            kl=kl,
            num_agreed=None if num_agreed is None else int(num_agreed),
            text_weight=self._hard_label_weight,
            top_k=None if outputs is None else outputs.top_k,
        )

    def save(self, folder: Path, score: DistillScore) -> None:
        self.student.write(folder, self._side_files_of)

    def _on_device(self, batch: Batch) -> Batch:
        """Return the batch where the student's parameters are."""
        device = self.student.lm_head_VE.device
        is_output_BS = None if batch.is_output_BS is None else batch.is_output_BS.to(device)
        return dataclasses.replace(batch, ids_BS=batch.ids_BS.to(device), is_output_BS=is_output_BS)

    def _block_loss(self, labels_r: Tensor, outputs: TeacherOutputs | None, start: int, stop: int, logits_rV: Tensor) -> Tensor:
        recipe, weight = self.recipe, self._hard_label_weight
        loss = weight * F.cross_entropy(logits_rV, labels_r, reduction="sum") if weight else logits_rV.new_zeros(())
        if outputs is not None and weight < 1:
            log_probs = outputs.log_probs(start, stop, logits_rV, recipe.temperature)
            soft_r = divergence(recipe.loss, *log_probs, beta=recipe.beta, alpha=recipe.alpha)
            loss = loss + (1 - weight) * recipe.temperature**2 * soft_r.sum()
        return loss
