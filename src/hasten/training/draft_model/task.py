"""Training a draft model: forward KL from the target's distribution, mixed with the text itself.

Shape suffixes: B windows · W tokens of a window · T = B·W tokens · E hidden size · V vocabulary · D depths · R positions.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.draft_ids import write_draft_ids
from hasten.checkpoints.hub import resolve
from hasten.layers.attention_context import DenseContext
from hasten.layers.formats.dense import Dense
from hasten.models.decoder import Decoder
from hasten.models.family import find_family
from hasten.models.load import check_vocabulary, load_decoder
from hasten.models.save import write_decoder
from hasten.training.corpus import Batch, Corpus
from hasten.training.count_accepted import count_accepted, likeliest
from hasten.training.draft_model.config import draft_config
from hasten.training.draft_model.recipe import DraftModelRecipe
from hasten.training.draft_score import DraftScore
from hasten.training.draft_vocabulary import draft_ids
from hasten.training.lm_head_loss import Target, lm_head_loss, teacher
from hasten.training.target_model import TargetModel

DEPTHS = 4  # of a chain of guesses
LAYERS = 2  # of a model of random weights, where nothing else is said
DEVIATION = 0.02  # of the initial matrices
_COPIED = (
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
        self.target, self.recipe = target, recipe
        self.config, self.decoder = _begun(recipe.init_from, target) if recipe.init_from else _blank(recipe, target, seed)
        self.family = find_family(self.config)
        self._draft_ids = draft_ids(corpus, recipe.draft_vocab, target.spec.vocab_size)
        self.decoder.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.decoder.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        return self._loss(batch, self._hidden(batch), self.target.normed(self.target.states(batch.ids_BW)))

    def evaluate(self, batch: Batch) -> DraftScore:
        """Greedy agreement: depth d of a position is right if the draft's likeliest token d places on is the target's, both
        having read the text so far.
        """
        count, length = batch.ids_BW.shape
        hidden_TE, normed_TE = self._hidden(batch), self.target.normed(self.target.states(batch.ids_BW))
        guesses_BWK = likeliest(hidden_TE, self._lm_head).view(count, length, -1)
        wanted_BW = self.target.choices(normed_TE).view(count, length)
        positions = length - DEPTHS + 1
        guesses = [guesses_BWK[:, depth : depth + positions].flatten(0, 1) for depth in range(DEPTHS)]
        wanted = [wanted_BW[:, depth : depth + positions].flatten() for depth in range(DEPTHS)]
        return count_accepted(torch.stack(guesses), torch.stack(wanted), float(self._loss(batch, hidden_TE, normed_TE)))

    def save(self, folder: Path, score: DraftScore) -> None:
        write_decoder(folder, self.decoder, self.family, self.config, self.target.dtype)
        if self._draft_ids is not None:
            write_draft_ids(folder, self._draft_ids)
        for pattern in _COPIED:
            for file in self.target.folder.glob(pattern):
                shutil.copyfile(file, folder / file.name)

    def _hidden(self, batch: Batch) -> Tensor:
        """What the draft's vocabulary projection reads. [T, E]"""
        count, length = batch.ids_BW.shape
        context = DenseContext(self.target.ops, self.decoder.rotary, [length] * count)
        last_TE = self.decoder.run(self.decoder.embed(batch.ids_BW.flatten()), context.positions_T, context)
        hidden_TE: Tensor = self.decoder.norm(last_TE)
        return hidden_TE

    def _loss(self, batch: Batch, hidden_TE: Tensor, teacher_TE: Tensor) -> Tensor:
        """The last token of a window has no next one in the text, so it is left out."""
        count, length = batch.ids_BW.shape
        hidden_RE, teacher_RE = (states.view(count, length, -1)[:, :-1].flatten(0, 1) for states in (hidden_TE, teacher_TE))
        words_VE = self.target.lm_head_VE
        hard = self.recipe.hard_label_weight
        target = Target(batch.ids_BW[:, 1:].flatten(), None if hard == 1.0 else teacher(teacher_RE, words_VE), hard)
        return lm_head_loss(hidden_RE, self._lm_head, target) / len(hidden_RE)

    @property
    def _lm_head(self) -> Tensor:
        matrix = self.decoder.lm_head.format
        assert isinstance(matrix, Dense)
        return matrix.weight


def _blank(recipe: DraftModelRecipe, target: TargetModel, seed: int) -> tuple[Mapping[str, Any], Decoder]:
    config = draft_config(target.config, layers=recipe.layers or LAYERS, hidden=recipe.hidden)
    decoder = Decoder(find_family(config).spec(config), target.ops, torch.float32)
    _initialise(decoder, seed)
    return config, decoder


def _begun(start: str, target: TargetModel) -> tuple[Mapping[str, Any], Decoder]:
    """Raises ``CheckpointError``, and ``InvalidOption`` for a model of another vocabulary."""
    loaded = load_decoder(resolve(start, None, quiet=True), dtype="float32", ops=target.ops)
    check_vocabulary(loaded, start, target.spec.vocab_size, "Take a smaller model of the same family, or begin with random weights")
    return loaded.config, loaded.decoder


def _initialise(decoder: Decoder, seed: int) -> None:
    """Matrices normal, norms 1, biases 0; what adds to the residual is smaller, the deeper the model (Radford et al., 2019)."""
    generator = torch.Generator().manual_seed(seed)
    residual = DEVIATION / (2 * decoder.spec.num_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in sorted(decoder.named_parameters()):
            if parameter.ndim > 1:
                added = name.endswith((".out.format.weight", ".down.format.weight"))
                parameter.normal_(0.0, residual if added else DEVIATION, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)
