"""``Teacher``: what a student learns from. ``LiveTeacher`` runs the model on every batch.

Shape suffixes: R positions of a batch · r some of them · C classes of tokens · V vocabulary · E hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hasten.training.corpus import Batch
from hasten.training.predicted_rows import PredictedRows
from hasten.training.target_model import TargetModel


class TeacherOutputs(Protocol):
    """A teacher's distributions at the R positions of a batch."""

    def log_probs(self, start: int, stop: int, logits_rV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the teacher and of the student, both [r, C] float32.

        They are those of positions ``[start, stop)``. ``logits_rV`` are the student's, with their graph. C classes are the tokens,
        or where only some are known, these and one class of all others. Both models' logits are divided by ``temperature``.
        """
        ...

    @property
    def top_k(self) -> int | None:
        """How many tokens are classes of their own at each position; None: all of them."""
        ...

    def has_same_top_token(self, start: int, stop: int, logits_rV: Tensor, log_probs: tuple[Tensor, Tensor]) -> Tensor:
        """Return where both models have the same most likely token, bool [r].

        ``log_probs`` are those of the same positions and logits.
        """
        ...

    @property
    def hidden_states(self) -> Mapping[int, Tensor]:
        """Layer index (from 0) -> the teacher's hidden states [R, E] of the layers that were asked for."""
        ...


class Teacher(Protocol):
    def outputs(self, batch: Batch, rows: PredictedRows, layers: Collection[int] = ()) -> TeacherOutputs:
        """Return what the teacher says at ``rows``. Hidden states only of ``layers``."""
        ...


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """Runs the teacher on every batch."""

    model: TargetModel

    @torch.no_grad()
    def outputs(self, batch: Batch, rows: PredictedRows, layers: Collection[int] = ()) -> LiveOutputs:
        states = self.model.hidden_states(batch.ids_BS, layers)
        hidden = {layer: hidden_TE[rows.rows_R] for layer, hidden_TE in states.aux_hidden_states.items()}
        return LiveOutputs(self.model.normed(states)[rows.rows_R], self.model.lm_head_VE, hidden)


@dataclass(frozen=True, slots=True)
class LiveOutputs:
    normed_RE: Tensor
    lm_head_VE: Tensor
    hidden_states: Mapping[int, Tensor]
    top_k: ClassVar[int | None] = None

    def has_same_top_token(self, start: int, stop: int, logits_rV: Tensor, log_probs: tuple[Tensor, Tensor]) -> Tensor:
        teacher_rC, student_rC = log_probs
        return teacher_rC.argmax(-1) == student_rC.argmax(-1)

    def log_probs(self, start: int, stop: int, logits_rV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Return both models' log-probabilities over the tokens that both vocabularies have.

        Models of one family may pad their vocabularies to different sizes.
        """
        with torch.no_grad():
            teacher_rV = (self.normed_RE[start:stop] @ self.lm_head_VE.T).float()
        common = min(teacher_rV.shape[1], logits_rV.shape[1])
        pair = teacher_rV[:, :common], logits_rV[:, :common].float()
        teacher_rC, student_rC = ((logits / temperature).log_softmax(-1) for logits in pair)
        return teacher_rC, student_rC
