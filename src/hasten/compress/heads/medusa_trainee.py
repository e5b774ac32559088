"""Training Medusa heads: cross entropy against the text itself, a head's weight falling with its distance.

Shape suffixes: B windows · W tokens of a window · E hidden size · H heads · R positions · K guesses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.medusa import write_medusa
from hasten.compress.heads.medusa import Medusa
from hasten.compress.training.backbone import Backbone
from hasten.compress.training.corpus import Batch
from hasten.compress.training.score import Score
from hasten.compress.training.tally import likeliest, tally
from hasten.compress.training.vocabulary_loss import Target, vocabulary_loss
from hasten.layers.build import Build
from hasten.layers.formats.dense import DenseFormats
from hasten.layers.medusa import MedusaHeads, MedusaSpec

DECAY = 0.8  # of the loss, per head
OFFSET = 2  # tokens from the one whose state is read to what head 0 guesses


class MedusaTrainee:
    """The heads begin as the identity: each guesses what the model itself guesses for its next token."""

    def __init__(self, backbone: Backbone, recipe: Medusa) -> None:
        self.backbone, self.recipe = backbone, recipe
        spec = MedusaSpec(
            num_heads=recipe.heads,
            num_layers=recipe.layers,
            hidden_size=backbone.spec.hidden_size,
            vocab_size=backbone.spec.vocab_size,
            truncated_vocab_size=backbone.spec.vocab_size,
            bias=True,
            vocabulary="own" if recipe.vocabulary == "own" else "model",
        )
        self.heads = MedusaHeads(spec, _build(backbone))
        with torch.no_grad():
            for name, parameter in self.heads.named_parameters():
                if name.startswith("lm_heads."):
                    parameter.copy_(backbone.vocabulary_VE)
                else:
                    parameter.zero_()
        self.heads.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.heads.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch, self._hidden(batch))

    def evaluate(self, batch: Batch) -> Score:
        """A position counts if the window holds the tokens that all heads should guess."""
        hidden = self._hidden(batch)
        num_heads = self.recipe.heads
        count = batch.ids_BW.shape[1] - OFFSET - num_heads + 1
        guesses = [likeliest(state_BWE[:, :count].flatten(0, 1), self._vocabulary(head)) for head, state_BWE in enumerate(hidden)]
        wanted = [batch.ids_BW[:, OFFSET + head : OFFSET + head + count].flatten() for head in range(num_heads)]
        return tally(torch.stack(guesses), torch.stack(wanted), float(self._loss(batch, hidden)))

    def save(self, folder: Path, score: Score) -> None:
        heads = self.heads if self.recipe.vocabulary != "copy" else self._with_copy()
        write_medusa(
            folder,
            heads,
            dtype=self.backbone.dtype,
            accuracies=score.accuracies,
            base_model=self.backbone.folder.name,
        )

    def _hidden(self, batch: Batch) -> list[Tensor]:
        """Each head's state of all positions that have a target for head 0. [B, W - 2, E]"""
        count, length = batch.ids_BW.shape
        normed_TE = self.backbone.normed(self.backbone.states(batch.ids_BW))
        read_BWE = normed_TE.view(count, length, -1)[:, : length - OFFSET]
        states = self.heads.hidden(read_BWE.flatten(0, 1))
        return [state.view(count, length - OFFSET, -1) for state in states]

    def _loss(self, batch: Batch, hidden: list[Tensor]) -> Tensor:
        losses = []
        for head, state_BWE in enumerate(hidden):
            targets_BW = batch.ids_BW[:, OFFSET + head :]
            state_RE = state_BWE[:, : targets_BW.shape[1]].flatten(0, 1)
            total = vocabulary_loss(state_RE, self._vocabulary(head), Target(targets_BW.flatten()))
            losses.append(total * (DECAY**head / targets_BW.numel()))
        return torch.stack(losses).sum()

    def _vocabulary(self, head: int) -> Tensor:
        """The weight of the projection behind a head. [V, E]"""
        if self.heads.spec.vocabulary == "own":
            return self.heads.get_parameter(f"lm_heads.{head}.format.weight")
        return self.backbone.vocabulary_VE

    def _with_copy(self) -> MedusaHeads:
        copy = MedusaHeads(dataclasses.replace(self.heads.spec, vocabulary="shared"), _build(self.backbone))
        weights = {**self.heads.state_dict(), "lm_heads.0.format.weight": self.backbone.vocabulary_VE}
        copy.load_state_dict(weights)
        return copy


def _build(backbone: Backbone) -> Build:
    return Build(backbone.ops, DenseFormats(backbone.ops, torch.float32), torch.float32)
