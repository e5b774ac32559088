"""``EagleTask``: an EAGLE-3 head learns to guess what its frozen target would choose, on its own earlier guesses' states.

Li et al., 2025, arXiv 2503.01840 (training-time test). Guess j (from 0) of anchor a follows token a + j + 1 of the text, so that it
is held against the target's distribution after that token::

    text       x0 x1 x2 x3 x4 x5        anchor 1, guess 0: states of x0 x1, then x2    against the target's choice after x2
                                        anchor 1, guess 1: on guess 0's state, x3      against the target's choice after x3

Shape suffixes: B windows · W tokens of a window · T = B·W tokens · N positions that count, of a window · U = B·N · J guesses ·
R = B·N·J rows · E hidden size · D draft vocabulary · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hasten.checkpoints.formats.eagle3 import write_eagle3
from hasten.checkpoints.formats.eagle3_config import Eagle3Config
from hasten.checkpoints.hub import resolve
from hasten.core.errors import InvalidOption
from hasten.layers.eagle import EagleHead
from hasten.layers.embedding import Embedding
from hasten.layers.formats.dense import Dense, DenseFormatFactory
from hasten.layers.layer_context import LayerContext
from hasten.models.eagle import default_aux_layers, eagle_spec, eagle_tensors, load_eagle
from hasten.training.corpus import Batch, Corpus
from hasten.training.count_accepted import count_accepted, likeliest
from hasten.training.draft_score import DraftScore
from hasten.training.draft_vocabulary import draft_vocab_size, frequent_tokens
from hasten.training.eagle.chain_context import ChainContext
from hasten.training.eagle.recipe import EagleRecipe
from hasten.training.lm_head_loss import Target, lm_head_loss, teacher
from hasten.training.target_model import TargetModel

DECAY = 0.8  # of the weight of each guess beside the one before it
# Keys by which configurations describe the rotary embedding: the head's is its target's.
_ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")


class EagleTask:
    """A ``TrainingTask``. The embedding is the target's and stays as it is."""

    def __init__(self, recipe: EagleRecipe, target: TargetModel, corpus: Corpus, seed: int) -> None:
        self.target, self.guesses = target, recipe.ttt_steps
        spec = target.spec
        config, self.head = _begun(recipe.init_from, target) if recipe.init_from else _blank(recipe, target, corpus, seed)
        self.config = dataclasses.replace(
            config,
            num_guesses=recipe.ttt_steps,
            verifier=published_name(target.folder),
            architectures=tuple(target.config.get("architectures") or ()),
        )
        whole = self.config.draft_vocab_size == spec.vocab_size
        self._target_DE = target.lm_head_VE if whole else target.lm_head_VE[self.head.target_ids]
        self._can_guess_V = torch.zeros(spec.vocab_size, dtype=torch.bool).index_fill(0, self.head.target_ids, True)
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.head.named_parameters() if not name.startswith("embedding.")}

    def loss(self, batch: Batch) -> Tensor:
        """Divergence from the target's distribution over the draft vocabulary; guess j weighs 0.8^j.

        Where the target would choose a token that cannot be guessed, there is nothing to learn.
        """
        return self._loss(*self._read(batch.ids_BW))

    def evaluate(self, batch: Batch) -> DraftScore:
        """A guess is right if it is the token that the target finds most likely after the same text.

        The text's own tokens stand between the guesses of a chain, whatever was guessed.
        """
        chains_JBWE, normed_BWE = self._read(batch.ids_BW)
        count = batch.ids_BW.shape[1] - self.guesses
        choices_BW = self._choices(normed_BWE)
        guessed = [likeliest(self.head.norm(chain[:, :count].flatten(0, 1)), self._lm_head) for chain in chains_JBWE]
        wanted = [choices_BW[:, 1 + j : 1 + j + count].flatten() for j in range(self.guesses)]
        loss = float(self._loss(chains_JBWE, normed_BWE))
        return count_accepted(self.head.target_ids[torch.stack(guessed)], torch.stack(wanted), loss)

    def save(self, folder: Path, score: DraftScore) -> None:
        tensors = {name: tensor.to(self.target.dtype) for name, tensor in eagle_tensors(self.head).items()}
        config = dataclasses.replace(self.config, accuracies=score.accuracies)
        write_eagle3(folder, config, tensors, self.head.target_ids, self.target.spec.vocab_size)

    def unroll(self, ids_BW: Tensor, hidden_TE: Tensor) -> Tensor:
        """The chains of all anchors, from their fused states. [J, B, W, E]

        Near the end of a window a guess runs out of text: what is there instead of it is in no chain that counts.
        """
        (num_windows, window), chains = ids_BW.shape, []
        context = ChainContext(self.target.ops, self.head.rotary, num_windows, window)
        for guess in range(self.guesses):
            ids_T = following(ids_BW, guess + 1).flatten()
            hidden_TE = self.head.run(hidden_TE, ids_T, context.positions_T, context)
            chains.append(hidden_TE.view(num_windows, window, -1))
        return torch.stack(chains)

    def _read(self, ids_BW: Tensor) -> tuple[Tensor, Tensor]:
        """The chains [J, B, W, E], and what the target's own vocabulary projection reads [B, W, E]."""
        assert ids_BW.shape[1] > self.guesses, "no token of the window has a guess of every depth"
        states, indices = (
            self.target.states(ids_BW, aux_layer_indices=set(self.head.spec.aux_layer_indices)),
            self.head.spec.aux_layer_indices,
        )
        fused_TE = self.head.fuse(torch.cat([states.aux_hidden_states[layer] for layer in indices], dim=-1))
        return self.unroll(ids_BW, fused_TE), self.target.normed(states).view(*ids_BW.shape, -1)

    def _loss(self, chains_JBWE: Tensor, normed_BWE: Tensor) -> Tensor:
        """The mean over all tokens but a window's first. Guesses of one token lie together: they share the target's distribution.

        Near the beginning there is no anchor for the later ones; rows that count nothing stand in for them.
        """
        count = normed_BWE.shape[1] - 1
        shifted = [pad(chain[:, : count - j], (0, 0, j, 0)) for j, chain in enumerate(chains_JBWE)]
        hidden_RE = self.head.norm(torch.stack(shifted, dim=2).flatten(0, 2))
        target_BNE, guess_J = normed_BWE[:, 1:], torch.arange(self.guesses)
        weights_NJ = DECAY**guess_J * (torch.arange(count)[:, None] >= guess_J)
        weights_BNJ = weights_NJ.expand(len(target_BNE), -1, -1)
        if self.config.draft_vocab_size < self.target.spec.vocab_size:
            weights_BNJ = weights_BNJ * self._can_guess_V[self._choices(target_BNE)][..., None]
        target = Target(
            ids_R=torch.zeros(len(hidden_RE), dtype=torch.int64),  # no token of its own, the distribution alone
            teacher=teacher(target_BNE.flatten(0, 1), self._target_DE, self.guesses),
            hard=0.0,
            weights_R=weights_BNJ.flatten(),
        )
        return lm_head_loss(hidden_RE, self._lm_head, target) / target_BNE[..., 0].numel()

    def _choices(self, normed_BWE: Tensor) -> Tensor:
        """The token that the target finds most likely. [B, W]"""
        return self.target.choices(normed_BWE.flatten(0, 1)).view(normed_BWE.shape[:2])

    @property
    def _lm_head(self) -> Tensor:
        matrix = self.head.lm_head.format
        assert isinstance(matrix, Dense)
        return matrix.weight


def _blank(recipe: EagleRecipe, target: TargetModel, corpus: Corpus, seed: int) -> tuple[Eagle3Config, EagleHead]:
    spec = target.spec
    config = Eagle3Config(
        layer=layer_config(target, recipe.intermediate),
        draft_vocab_size=draft_vocab_size(recipe.draft_vocab, spec.vocab_size),
        aux_layers=recipe.aux_layers or default_aux_layers(spec.num_layers),
        norm_before_residual=recipe.norm_before_residual,
    )
    layer_context = LayerContext(target.ops, DenseFormatFactory(target.ops, torch.float32), torch.float32)
    head = EagleHead(eagle_spec(config, spec, target.folder), Embedding(target.decoder.embedding.format), layer_context)
    head.target_ids.copy_(frequent_tokens(corpus.train_N, spec.vocab_size, config.draft_vocab_size))
    initialise(head, target, torch.Generator().manual_seed(seed))
    return config, head


def _begun(start: str, target: TargetModel) -> tuple[Eagle3Config, EagleHead]:
    """Raises ``CheckpointError`` for a head of another model, and ``InvalidOption`` for one whose embedding is not the model's."""
    loaded = load_eagle(resolve(start, None, quiet=True), target.decoder)
    if loaded.head.embedding.format is not target.decoder.embedding.format:
        raise InvalidOption(
            "this head has an embedding of its own, which stays as it is and is not written",
            got=start,
            remedy="Begin with a head that reads the model's embedding, or with none",
        )
    return dataclasses.replace(loaded.config, aux_layers=loaded.head.spec.aux_layers), loaded.head


def following(ids_BW: Tensor, count: int) -> Tensor:
    """The token ``count`` after each; a window's last one where it ends before. [B, W]"""
    return torch.cat((ids_BW[:, count:], ids_BW[:, -1:].expand(-1, count)), dim=1)


def published_name(folder: Path) -> str:
    """A model in the hub's cache by its name there, any other by its folder's."""
    cached = [part for part in folder.parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else folder.name


def layer_config(target: TargetModel, intermediate: int | None = None) -> dict[str, Any]:
    """The configuration of a Llama layer with the target's sizes, heads and rotary embedding."""
    spec, config = target.spec, target.config
    attention, mlp = spec.layers[0].attention, spec.layers[0].mlp
    return {
        "model_type": "llama",
        "hidden_size": spec.hidden_size,
        "intermediate_size": intermediate or mlp.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.get("max_position_embeddings") or spec.max_positions,
        "rms_norm_eps": spec.norm.eps,
        "vocab_size": spec.vocab_size,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        **{name: config[name] for name in _ROTARY if attention.rotary is not None and config.get(name) is not None},
    }


def initialise(head: EagleHead, target: TargetModel, generator: torch.Generator) -> None:
    """The target's final norm and vocabulary; all else at random, of unit size, but what is added to the residual begins small."""
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.startswith("embedding."):
                continue
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                added = name.endswith((".out.format.weight", ".down.format.weight"))
                parameter.normal_(0.0, (0.2 if added else 1.0) * parameter.shape[1] ** -0.5, generator=generator)
        if target.spec.norm.kind == "rms":
            head.norm.weight.copy_(target.decoder.norm.weight)
        head.get_parameter("lm_head.format.weight").copy_(target.lm_head_VE[head.target_ids])
