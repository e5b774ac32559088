"""Training exits: each learns to say what the whole model says, and how likely it is to choose the same token.

That is self-distillation (FastBERT, Liu et al., 2020) through a tuned lens (Belrose et al., 2023), with CALM's classifiers
(Schuster et al., 2022).

Shape suffixes: B windows · W tokens of a window · T = B·W tokens · E hidden size · D exits · V vocabulary · K guesses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.checkpoints.formats.exits import ExitsCheckpoint, write_exits
from hasten.layers.exits import Exits, ExitsSpec
from hasten.layers.formats.dense import DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, Corpus
from hasten.training.count_accepted import count_accepted, likeliest
from hasten.training.draft_score import DraftScore
from hasten.training.draft_vocabulary import draft_ids
from hasten.training.early_exit.calibrate import calibrate
from hasten.training.early_exit.recipe import EarlyExitRecipe as Recipe
from hasten.training.lm_head_loss import Target, lm_head_loss, teacher
from hasten.training.options import TrainOptions
from hasten.training.target_model import States, TargetModel

JUDGED = 4  # one token in so many teaches the classifiers: they are small, and what they learn costs a product with the vocabulary


class EarlyExitTask:
    """Exits begin as the logit lens: a state is read as if it were the last one, and any agreement is as likely as not."""

    def __init__(self, target: TargetModel, recipe: Recipe, corpus: Corpus) -> None:
        self.target, self.recipe = target, recipe
        spec = ExitsSpec(
            layers=recipe.settled(target.spec.num_layers),
            num_layers=target.spec.num_layers,
            hidden_size=target.spec.hidden_size,
            vocab_size=target.spec.vocab_size,
        )
        self.exits = Exits(spec, LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32))
        with torch.no_grad():
            for parameter in self.exits.parameters():
                parameter.zero_()
        self.exits.requires_grad_(True)
        self._draft_ids = draft_ids(corpus, recipe.draft_vocab, spec.vocab_size)
        self._made = ExitsCheckpoint(self.exits)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.exits.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        states = self._states(batch)
        return self._loss(batch, states, self._readable(states))

    def evaluate(self, batch: Batch) -> DraftScore:
        """How often each exit's likeliest token is the model's, and at which of its ranks the model's is."""
        states = self._states(batch)
        normed_TDE = self._readable(states)
        num_tokens, num_exits = normed_TDE.shape[:2]
        guesses_TDK = likeliest(normed_TDE.flatten(0, 1), self.target.lm_head_VE).view(num_tokens, num_exits, -1)
        wanted_T = self.target.choices(self.target.normed(states))
        wanted_DT = wanted_T.expand(num_exits, -1)
        return count_accepted(
            guesses_TDK.transpose(0, 1), wanted_DT, float(self._loss(batch, states, normed_TDE)), self.exits.spec.layers
        )

    def save(self, folder: Path, score: DraftScore) -> None:
        made = dataclasses.replace(self._made, agreements=score.acceptance or None, draft_ids=self._draft_ids)
        write_exits(folder, made, dtype=self.target.dtype, base_model=self.target.folder.name)

    def finish(
        self, corpus: Corpus, options: TrainOptions, callback: TrainingCallback, stop: Callable[[], bool]
    ) -> Mapping[str, Any] | None:
        """Tables and thresholds, for the translators as they will be stored."""
        with torch.no_grad():
            for layer in self.exits.spec.layers:
                for parameter in self.exits.at(layer).translate.parameters():
                    parameter.copy_(parameter.to(self.target.dtype))
        if self.recipe.texts == 0:
            return {}
        calibrated = calibrate(self.target, self.exits, corpus, self.recipe.texts, options, callback, stop)
        if calibrated is None:
            return None
        self._made, report = calibrated
        return report

    def _states(self, batch: Batch) -> States:
        return self.target.states(batch.ids_BW, [layer - 1 for layer in self.exits.spec.layers])

    def _readable(self, states: States) -> Tensor:
        """What the vocabulary projection reads of every token at every exit. [T, D, E]"""
        tuned_lens = [self.exits.at(layer).tuned_lens(states.aux_hidden_states[layer - 1]) for layer in self.exits.spec.layers]
        normed_TDE: Tensor = self.target.decoder.norm(torch.stack(tuned_lens, dim=1))
        return normed_TDE

    def _loss(self, batch: Batch, states: States, normed_TDE: Tensor) -> Tensor:
        num_tokens, num_exits = normed_TDE.shape[:2]
        words_VE, teacher_TE = self.target.lm_head_VE, self.target.normed(states)
        target = Target(batch.ids_BW.flatten().repeat_interleave(num_exits), teacher(teacher_TE, words_VE, num_exits), hard=0.0)
        divergence = lm_head_loss(normed_TDE.flatten(0, 1), words_VE, target) / num_tokens
        return divergence + self._judgement(states, normed_TDE.detach(), teacher_TE)

    def _judgement(self, states: States, normed_TDE: Tensor, teacher_TE: Tensor) -> Tensor:
        """Binary cross entropy of the classifiers, summed over exits. They read states, so no translator learns from it."""
        words_VE, some = self.target.lm_head_VE, slice(None, None, JUDGED)
        with torch.no_grad():
            said_TD = likeliest(normed_TDE[some].flatten(0, 1), words_VE)[:, 0].view(-1, normed_TDE.shape[1])
            agrees_TD = said_TD == likeliest(teacher_TE[some], words_VE)[:, :1]
        layers = self.exits.spec.layers
        logits = [self.exits.at(layer).agreement_logit(states.aux_hidden_states[layer - 1][some]) for layer in layers]
        return F.binary_cross_entropy_with_logits(torch.stack(logits, dim=1), agrees_TD.float()) * len(layers)
