"""``DraftModelTask``: distillation of a target model into a small draft model.

The loss is the forward KL from the target's distribution, mixed with the cross entropy of the text's tokens.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · R labelled tokens · E hidden size · K top tokens ·
D draft vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.draft_ids import write_draft_ids
from hasten.checkpoints.hub import resolve
from hasten.models.load import check_draft_vocabulary
from hasten.training.corpus import Batch, Corpus, draft_token_ids
from hasten.training.draft_score import DraftScore, count_accepted, topk_tokens
from hasten.training.lm_head_loss import Labels, lm_head_loss, teacher_probs
from hasten.training.recipes import DraftModelRecipe
from hasten.training.smaller_config import smaller_config
from hasten.training.target_model import TargetModel
from hasten.training.trainable_model import TrainableModel

CHAIN_LENGTH = 4  # draft tokens of the validation score
DEFAULT_LAYERS = 2  # of a new model
_COPIED_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
)


class DraftModelTask:
    def __init__(self, target: TargetModel, recipe: DraftModelRecipe, corpus: Corpus, seed: int) -> None:
        """Raise ``InvalidOption`` or ``CheckpointError`` for a draft model that does not fit the target."""
        self.target, self.hard_label_weight = target, recipe.hard_label_weight
        self.model = _load_draft(recipe.init_from, target) if recipe.init_from else _new_draft(recipe, target, seed)
        self._draft_ids_D = draft_token_ids(corpus, recipe.draft_vocab, target.spec.vocab_size)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.model.decoder.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch, *self._run(batch))

    def evaluate(self, batch: Batch) -> DraftScore:
        """Compare the draft's top tokens with the target's greedy token over chains of ``CHAIN_LENGTH``.

        Both models read the text's own tokens.
        """
        shape = batch.ids_BS.shape
        hidden_TE, normed_TE = self._run(batch)
        draft_BSK = topk_tokens(hidden_TE, self.model.lm_head_VE).view(*shape, -1)
        target_BS = self.target.greedy_tokens(normed_TE).view(shape)
        count = shape[1] - CHAIN_LENGTH + 1
        drafted = [draft_BSK[:, depth : depth + count].flatten(0, 1) for depth in range(CHAIN_LENGTH)]
        labels = [target_BS[:, depth : depth + count].flatten() for depth in range(CHAIN_LENGTH)]
        return count_accepted(torch.stack(drafted), torch.stack(labels), float(self._loss(batch, hidden_TE, normed_TE)))

    def save(self, folder: Path, score: DraftScore) -> None:
        self.model.write(folder, dtype=self.target.dtype)
        if self._draft_ids_D is not None:
            write_draft_ids(folder, self._draft_ids_D)
        for pattern in _COPIED_FILES:
            for file in self.target.folder.glob(pattern):
                shutil.copyfile(file, folder / file.name)

    def _run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the inputs of the draft's and of the target's lm_head, [T, E] with the size of each model."""
        student_TE = self.model.normed(self.model.hidden_states(batch.ids_BS))
        return student_TE, self.target.normed(self.target.hidden_states(batch.ids_BS))

    def _loss(self, batch: Batch, hidden_TE: Tensor, normed_TE: Tensor) -> Tensor:
        """Return the mean over all tokens but a sequence's last, which has no next token in the text."""
        num_sequences, seq_len = batch.ids_BS.shape
        hidden_RE, normed_RE = (x_TE.view(num_sequences, seq_len, -1)[:, :-1].flatten(0, 1) for x_TE in (hidden_TE, normed_TE))
        teacher = None if self.hard_label_weight == 1.0 else teacher_probs(normed_RE, self.target.lm_head_VE)
        labels = Labels(batch.ids_BS[:, 1:].flatten(), teacher, self.hard_label_weight)
        return lm_head_loss(hidden_RE, self.model.lm_head_VE, labels) / len(hidden_RE)


def _new_draft(recipe: DraftModelRecipe, target: TargetModel, seed: int) -> TrainableModel:
    remedy = "Choose others with --layers and --hidden"
    config = smaller_config(target.config, layers=recipe.layers or DEFAULT_LAYERS, hidden=recipe.hidden, remedy=remedy)
    return TrainableModel.new(config, seed, target.ops)


def _load_draft(init_from: str, target: TargetModel) -> TrainableModel:
    """Load the initial model.

    Raises like ``TargetModel.load``, and ``InvalidOption`` for another vocabulary.
    """
    model = TrainableModel.load(resolve(init_from, None, quiet=True), target.ops)
    remedy = "Give a smaller model of the same family, or leave out init_from"
    check_draft_vocabulary(model.spec, init_from, target.spec.vocab_size, remedy)
    return model
