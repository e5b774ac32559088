"""Training MedusaRecipe heads: each learns what the model would say that many tokens on, and weighs less the further that is.

A head reads the state of a token; the model's own word about the place that is guessed, which it says with the text between in
sight, is what the head's guess will be held against. So it is also the target here, as a distribution.

Shape suffixes: B windows · W tokens of a window · E hidden size · H heads · R positions · K guesses · D draft vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.medusa import write_medusa
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.layers.medusa import MedusaHeads, MedusaSpec
from hasten.training.corpus import Batch, Corpus
from hasten.training.count_accepted import count_accepted, likeliest
from hasten.training.draft_score import DraftScore
from hasten.training.draft_vocabulary import draft_vocab_size, frequent_tokens
from hasten.training.lm_head_loss import Target, lm_head_loss, teacher
from hasten.training.medusa.recipe import MedusaRecipe
from hasten.training.target_model import TargetModel

DECAY = 0.8  # of the loss, per head
OFFSET = 1  # tokens from the one whose state is read to the one whose state says what head 0 should guess


class MedusaTask:
    """The heads begin as the identity: each guesses what the model itself guesses for its next token."""

    def __init__(self, target: TargetModel, recipe: MedusaRecipe, corpus: Corpus) -> None:
        self.target, self.recipe = target, recipe
        vocab_size = target.spec.vocab_size
        words = draft_vocab_size(recipe.draft_vocab, vocab_size)
        spec = MedusaSpec(
            num_heads=recipe.heads,
            num_layers=recipe.layers,
            hidden_size=target.spec.hidden_size,
            vocab_size=vocab_size,
            truncated_vocab_size=words,
            bias=True,
            lm_head="own" if recipe.lm_head == "own" else "model",
        )
        self.heads = MedusaHeads(spec, _layer_context(target))
        self._words_DE, self._can_guess_V = target.lm_head_VE, None
        if self.heads.token_map is not None:
            self.heads.token_map.copy_(frequent_tokens(corpus.train_N, vocab_size, words))
            self._words_DE = target.lm_head_VE[self.heads.token_map]
            self._can_guess_V = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, self.heads.token_map, True)
        with torch.no_grad():
            for name, parameter in self.heads.named_parameters():
                if name.startswith("lm_heads."):
                    parameter.copy_(self._words_DE)
                else:
                    parameter.zero_()
        self.heads.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.heads.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        """Divergence from the model's distribution over the heads' tokens.

        Where the model would choose a token that cannot be guessed, there is nothing to learn.
        """
        normed_BWE = self._normed(batch)
        return self._loss(normed_BWE, self._hidden(normed_BWE))

    def evaluate(self, batch: Batch) -> DraftScore:
        """A guess is right if the model finds it most likely there. A position counts if the window holds all heads' places."""
        normed_BWE = self._normed(batch)
        num_heads = self.recipe.heads
        count = normed_BWE.shape[1] - OFFSET - num_heads + 1
        hidden = self._hidden(normed_BWE)
        guesses = [likeliest(state_BWE[:, :count].flatten(0, 1), self._lm_head(head)) for head, state_BWE in enumerate(hidden)]
        choices_BW = self._choices(normed_BWE)
        wanted = [choices_BW[:, OFFSET + head : OFFSET + head + count].flatten() for head in range(num_heads)]
        loss = float(self._loss(normed_BWE, hidden))
        return count_accepted(self.heads.token_ids(torch.stack(guesses)), torch.stack(wanted), loss)

    def save(self, folder: Path, score: DraftScore) -> None:
        heads = self.heads if self.recipe.lm_head != "copy" else self._with_copy()
        write_medusa(
            folder,
            heads,
            dtype=self.target.dtype,
            accuracies=score.accuracies,
            base_model=self.target.folder.name,
        )

    def _normed(self, batch: Batch) -> Tensor:
        """What the model's own vocabulary projection reads. [B, W, E]"""
        return self.target.normed(self.target.states(batch.ids_BW)).view(*batch.ids_BW.shape, -1)

    def _hidden(self, normed_BWE: Tensor) -> list[Tensor]:
        """Each head's state of all positions that have a target for head 0. [B, W - 1, E]"""
        read_BWE = normed_BWE[:, : normed_BWE.shape[1] - OFFSET]
        return [state.view(read_BWE.shape) for state in self.heads.hidden(read_BWE.flatten(0, 1))]

    def _loss(self, normed_BWE: Tensor, hidden: list[Tensor]) -> Tensor:
        """Head i at a token is held against what the model says after the text i + 1 tokens on."""
        sayable_BW = None if self._can_guess_V is None else self._can_guess_V[self._choices(normed_BWE)].float()
        losses = []
        for head, state_BWE in enumerate(hidden):
            first = OFFSET + head
            teacher_RE = normed_BWE[:, first:].flatten(0, 1)
            target = Target(
                ids_R=torch.zeros(len(teacher_RE), dtype=torch.int64),  # no token of its own, the distribution alone
                teacher=teacher(teacher_RE, self._words_DE),
                hard=0.0,
                weights_R=None if sayable_BW is None else sayable_BW[:, first:].flatten(),
            )
            total = lm_head_loss(state_BWE[:, : state_BWE.shape[1] - head].flatten(0, 1), self._lm_head(head), target)
            losses.append(total * (DECAY**head / len(teacher_RE)))
        return torch.stack(losses).sum()

    def _choices(self, normed_BWE: Tensor) -> Tensor:
        """The token that the model finds most likely. [B, W]"""
        return self.target.choices(normed_BWE.flatten(0, 1)).view(normed_BWE.shape[:2])

    def _lm_head(self, head: int) -> Tensor:
        """The weight of the projection behind a head. [D, E]"""
        if self.heads.spec.lm_head == "own":
            return self.heads.get_parameter(f"lm_heads.{head}.format.weight")
        return self._words_DE

    def _with_copy(self) -> MedusaHeads:
        copy = MedusaHeads(dataclasses.replace(self.heads.spec, lm_head="shared"), _layer_context(self.target))
        weights = {**self.heads.state_dict(), "lm_heads.0.format.weight": self._words_DE}
        copy.load_state_dict(weights)
        copy.token_map = self.heads.token_map
        return copy


def _layer_context(target: TargetModel) -> LayerContext:
    return LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32)
