"""``EarlyExitTask``: training of exit heads on the full model's distribution.

Each head has a tuned lens (Belrose et al., 2023, arXiv 2303.08112), trained by self-distillation (FastBERT, Liu et al., 2020). Its
classifier (CALM, Schuster et al., 2022, arXiv 2207.07061) learns whether exit and full model agree.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · E hidden size · D exits · V vocabulary · K top tokens.
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
from hasten.core.errors import InvalidOption
from hasten.layers.early_exit import ExitHeads, ExitHeadsSpec
from hasten.training.callback import TrainingCallback
from hasten.training.corpus import Batch, Corpus, draft_token_ids
from hasten.training.draft_score import DraftScore, count_accepted, topk_tokens
from hasten.training.early_exit.calibrate import calibrate
from hasten.training.lm_head_loss import Labels, lm_head_loss, teacher_probs
from hasten.training.options import TrainOptions
from hasten.training.recipes import EarlyExitRecipe
from hasten.training.target_model import HiddenStates, TargetModel

DEFAULT_DEPTHS = (3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # default exits, relative to the number of layers
CLASSIFIER_STRIDE = 4  # every 4th token trains the classifiers: they are small, and their labels cost an lm_head product


class EarlyExitTask:
    """The exits start as the logit lens, which reads an early hidden state as if it were the last."""

    def __init__(self, target: TargetModel, recipe: EarlyExitRecipe, corpus: Corpus, seed: int) -> None:
        """Raise ``InvalidOption`` for exit layers that the target does not have."""
        self.target, self.recipe = target, recipe
        spec = ExitHeadsSpec(
            layers=exit_layers(recipe.layers, target.spec.num_layers),
            num_layers=target.spec.num_layers,
            hidden_size=target.spec.hidden_size,
            vocab_size=target.spec.vocab_size,
        )
        self.exits = ExitHeads(spec, target.layer_context)
        with torch.no_grad():
            for parameter in self.exits.parameters():
                parameter.zero_()
        self.exits.requires_grad_(True)
        self.checkpoint = ExitsCheckpoint(self.exits, draft_ids=draft_token_ids(corpus, recipe.draft_vocab, spec.vocab_size))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.exits.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(*self._run(batch))

    def evaluate(self, batch: Batch) -> DraftScore:
        """Compare the top tokens of each exit with the full model's greedy token."""
        states, normed_TE, exit_normed_TDE = self._run(batch)
        num_tokens, num_exits = exit_normed_TDE.shape[:2]
        exit_TDK = topk_tokens(exit_normed_TDE.flatten(0, 1), self.target.lm_head_VE).view(num_tokens, num_exits, -1)
        target_DT = self.target.greedy_tokens(normed_TE).expand(num_exits, -1)
        loss = float(self._loss(states, normed_TE, exit_normed_TDE))
        return count_accepted(exit_TDK.transpose(0, 1), target_DT, loss, self.exits.spec.layers)

    def calibrate(
        self, corpus: Corpus, options: TrainOptions, callback: TrainingCallback, should_stop: Callable[[], bool]
    ) -> Mapping[str, Any] | None:
        """Find tables and thresholds for the tuned lenses rounded to the stored dtype."""
        with torch.no_grad():
            for layer in self.exits.spec.layers:
                for parameter in self.exits.at(layer).translate.parameters():
                    parameter.copy_(parameter.to(self.target.dtype))
        if self.recipe.texts == 0:
            return {}
        calibrated = calibrate(self.target, self.exits, corpus, self.recipe.texts, options, callback, should_stop)
        if calibrated is None:
            return None
        checkpoint, report = calibrated
        self.checkpoint = dataclasses.replace(checkpoint, draft_ids=self.checkpoint.draft_ids)
        return report

    def save(self, folder: Path, score: DraftScore) -> None:
        checkpoint = dataclasses.replace(self.checkpoint, agreements=score.acceptance or None)
        write_exits(folder, checkpoint, dtype=self.target.dtype, base_model=self.target.folder.name)

    def _run(self, batch: Batch) -> tuple[HiddenStates, Tensor, Tensor]:
        """Return hidden states, and the lm_head's inputs of the full model [T, E] and of every exit [T, D, E]."""
        layers = self.exits.spec.layers
        states = self.target.hidden_states(batch.ids_BS, [layer - 1 for layer in layers])
        lenses = [self.exits.at(layer).tuned_lens(states.aux_hidden_states[layer - 1]) for layer in layers]
        return states, self.target.normed(states), self.target.decoder.norm(torch.stack(lenses, dim=1))

    def _loss(self, states: HiddenStates, normed_TE: Tensor, exit_normed_TDE: Tensor) -> Tensor:
        num_tokens, num_exits = exit_normed_TDE.shape[:2]
        lm_head_VE = self.target.lm_head_VE
        labels = Labels(teacher=teacher_probs(normed_TE, lm_head_VE, num_exits), hard_label_weight=0.0)
        divergence = lm_head_loss(exit_normed_TDE.flatten(0, 1), lm_head_VE, labels) / num_tokens
        return divergence + self._classifier_loss(states, normed_TE, exit_normed_TDE)

    def _classifier_loss(self, states: HiddenStates, normed_TE: Tensor, exit_normed_TDE: Tensor) -> Tensor:
        """Return the classifiers' cross entropy, summed over exits. The lenses get no gradient from it."""
        layers, some = self.exits.spec.layers, slice(None, None, CLASSIFIER_STRIDE)
        with torch.no_grad():
            agrees_TD = self.target.greedy_tokens(exit_normed_TDE[some]) == self.target.greedy_tokens(normed_TE[some])[:, None]
        logits = [self.exits.at(layer).agreement_logit(states.aux_hidden_states[layer - 1][some]) for layer in layers]
        return F.binary_cross_entropy_with_logits(torch.stack(logits, dim=1), agrees_TD.float()) * len(layers)


def exit_layers(layers: tuple[int, ...] | None, num_layers: int) -> tuple[int, ...]:
    """Return the exit layers in rising order, by ``DEFAULT_DEPTHS`` for None. Raises ``InvalidOption``."""
    if layers is None:
        chosen = sorted({round(depth * num_layers) for depth in DEFAULT_DEPTHS} & set(range(1, num_layers)))
    else:
        chosen = sorted(layers)
    if not chosen or chosen[-1] >= num_layers:
        raise InvalidOption(
            "an exit must come after the first layer and before the last",
            got=f"exits after {', '.join(map(str, chosen)) or 'no'} layers",
            allowed=f"1 to {num_layers - 1}, for this model of {num_layers} layers",
            remedy="Choose others with --layers",
        )
    return tuple(chosen)
