"""``EagleTask``: training of an EAGLE-3 head on its frozen target's hidden states.

Training-time test (Li et al., 2025, arXiv 2503.01840): later draft tokens run on the head's own hidden states. Draft token j
(from 0) of anchor a follows text token a + j + 1, so its label is the target's distribution after that token::

    text       x0 x1 x2 x3 x4 x5        anchor 1, draft 0: states of x0 x1, then x2     label: the target's choice after x2
                                        anchor 1, draft 1: on draft 0's state, x3       label: the target's choice after x3

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · N labelled positions of a sequence · J draft tokens ·
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

from hasten.checkpoints.formats.eagle3 import Eagle3Config, write_eagle3
from hasten.checkpoints.hub import resolve_heads
from hasten.core.errors import InvalidOption
from hasten.layers.eagle import EagleHead
from hasten.layers.linear import Embedding
from hasten.models.eagle import default_aux_layers, eagle_spec, eagle_tensors, load_eagle
from hasten.training.chain_context import ChainContext
from hasten.training.corpus import Batch, Corpus, draft_token_ids
from hasten.training.draft_score import DraftScore, count_accepted, topk_tokens
from hasten.training.lm_head_loss import Labels, lm_head_loss, teacher_probs
from hasten.training.recipes import EagleRecipe
from hasten.training.target_model import TargetModel, dense_weight

DECAY = 0.8  # loss weight of each draft token, relative to the one before
# Configuration keys of the rotary embedding, which the head takes from its target.
_ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")


class EagleTask:
    """The head's embedding is the target's and stays frozen."""

    def __init__(self, target: TargetModel, recipe: EagleRecipe, corpus: Corpus, seed: int) -> None:
        """Raise ``InvalidOption`` for tokens or layers that the target does not have."""
        self.target, self.ttt_steps = target, recipe.ttt_steps
        vocab_size = target.spec.vocab_size
        config, self.head = _load_head(recipe.init_from, target) if recipe.init_from else _new_head(recipe, target, corpus, seed)
        self.config = dataclasses.replace(
            config,
            num_speculative_tokens=recipe.ttt_steps,
            verifier=hub_name(target.folder),
            architectures=tuple(target.config.get("architectures") or ()),
        )
        self._truncated = config.draft_vocab_size < vocab_size
        self._target_lm_head_DE = target.lm_head_VE[self.head.target_ids] if self._truncated else target.lm_head_VE
        self._in_draft_vocab_V = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, self.head.target_ids, True)
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.head.named_parameters() if not name.startswith("embedding.")}

    def loss(self, batch: Batch) -> Tensor:
        """Return the divergence from the target's distribution over the draft vocabulary.

        Draft token j weighs 0.8^j. Positions where the target chooses a token outside the draft vocabulary weigh 0.
        """
        return self._loss(*self._unroll(batch.ids_BS))

    def evaluate(self, batch: Batch) -> DraftScore:
        """Compare draft tokens with the target's greedy tokens. Chains read the text's own tokens."""
        chains_JBSE, normed_BSE = self._unroll(batch.ids_BS)
        count = batch.ids_BS.shape[1] - self.ttt_steps
        greedy_BS = self.target.greedy_tokens(normed_BSE)
        drafted = [topk_tokens(self.head.norm(chain[:, :count].flatten(0, 1)), self._lm_head_DE) for chain in chains_JBSE]
        labels = [greedy_BS[:, 1 + j : 1 + j + count].flatten() for j in range(self.ttt_steps)]
        loss = float(self._loss(chains_JBSE, normed_BSE))
        return count_accepted(self.head.target_ids[torch.stack(drafted)], torch.stack(labels), loss)

    def save(self, folder: Path, score: DraftScore) -> None:
        tensors = {name: tensor.to(self.target.dtype) for name, tensor in eagle_tensors(self.head).items()}
        config = dataclasses.replace(self.config, accuracies=score.accuracies)
        write_eagle3(folder, config, tensors, self.head.target_ids, self.target.spec.vocab_size)

    @property
    def _lm_head_DE(self) -> Tensor:
        return dense_weight(self.head.lm_head)

    def _unroll(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states of draft chains [J, B, S, E] and the target's lm_head inputs [B, S, E].

        Chains that reach beyond the end of a sequence hold meaningless states, which no caller reads.
        """
        num_sequences, seq_len = ids_BS.shape
        assert seq_len > self.ttt_steps, "no position of the sequence has labels for the entire chain"
        indices, chains = self.head.spec.aux_layer_indices, []
        states = self.target.hidden_states(ids_BS, set(indices))
        hidden_TE = self.head.fuse(torch.cat([states.aux_hidden_states[layer] for layer in indices], dim=-1))
        context = ChainContext(self.target.ops, self.head.rotary, num_sequences, seq_len)
        for step in range(self.ttt_steps):
            hidden_TE = self.head.run(hidden_TE, shifted_ids(ids_BS, step + 1).flatten(), context.positions_T, context)
            chains.append(hidden_TE.view(num_sequences, seq_len, -1))
        return torch.stack(chains), self.target.normed(states).view(num_sequences, seq_len, -1)

    def _loss(self, chains_JBSE: Tensor, normed_BSE: Tensor) -> Tensor:
        """Return the mean over all labelled tokens: every token of a sequence but the first.

        Draft tokens of the same label are adjacent rows, because they share its distribution. Rows before the first anchor weigh 0.
        """
        count = normed_BSE.shape[1] - 1
        shifted = [pad(chain[:, : count - j], (0, 0, j, 0)) for j, chain in enumerate(chains_JBSE)]
        hidden_RE = self.head.norm(torch.stack(shifted, dim=2).flatten(0, 2))
        labels_BNE, step_J = normed_BSE[:, 1:], torch.arange(self.ttt_steps)
        weights_NJ = DECAY**step_J * (torch.arange(count)[:, None] >= step_J)
        weights_BNJ = weights_NJ.expand(len(labels_BNE), -1, -1)
        if self._truncated:
            weights_BNJ = weights_BNJ * self._in_draft_vocab_V[self.target.greedy_tokens(labels_BNE)][..., None]
        teacher = teacher_probs(labels_BNE.flatten(0, 1), self._target_lm_head_DE, self.ttt_steps)
        labels = Labels(teacher=teacher, hard_label_weight=0.0, row_weights_R=weights_BNJ.flatten())
        return lm_head_loss(hidden_RE, self._lm_head_DE, labels) / labels_BNE[..., 0].numel()


def _new_head(recipe: EagleRecipe, target: TargetModel, corpus: Corpus, seed: int) -> tuple[Eagle3Config, EagleHead]:
    spec = target.spec
    if recipe.aux_layers is not None and max(recipe.aux_layers) > spec.num_layers:
        raise InvalidOption(
            "aux_layers names layers that the model does not have",
            got=", ".join(map(str, recipe.aux_layers)),
            allowed=f"1 to {spec.num_layers}",
        )
    draft_ids_D = draft_token_ids(corpus, recipe.draft_vocab, spec.vocab_size)
    config = Eagle3Config(
        layer=layer_config(target, recipe.intermediate),
        draft_vocab_size=spec.vocab_size if draft_ids_D is None else len(draft_ids_D),
        aux_layers=recipe.aux_layers or default_aux_layers(spec.num_layers),
        norm_before_residual=recipe.norm_before_residual,
    )
    embedding = Embedding(target.decoder.embedding.format)
    head = EagleHead(eagle_spec(config, spec, target.folder), embedding, target.layer_context)
    if draft_ids_D is not None:
        head.target_ids.copy_(draft_ids_D)
    _init_weights(head, target, torch.Generator().manual_seed(seed))
    return config, head


def _load_head(init_from: str, target: TargetModel) -> tuple[Eagle3Config, EagleHead]:
    """Load the initial head. Raises ``CheckpointError``, and ``InvalidOption`` for an own embedding."""
    loaded = load_eagle(resolve_heads(init_from, quiet=True), target.decoder)
    if loaded.head.embedding.format is not target.decoder.embedding.format:
        raise InvalidOption(
            "this head has its own embedding, which training neither changes nor saves",
            got=init_from,
            remedy="Give a head that uses the model's embedding, or leave out init_from",
        )
    return dataclasses.replace(loaded.config, aux_layers=loaded.head.spec.aux_layers), loaded.head


def shifted_ids(ids_BS: Tensor, offset: int) -> Tensor:
    """Return the token ``offset`` positions later, or the last of the sequence beyond its end, [B, S]."""
    return torch.cat((ids_BS[:, offset:], ids_BS[:, -1:].expand(-1, offset)), dim=1)


def hub_name(folder: Path) -> str:
    """Return the hub name of a model in the hub's cache, or the name of another folder."""
    cached = [part for part in folder.parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/") if cached else folder.name


def layer_config(target: TargetModel, intermediate: int | None = None) -> dict[str, Any]:
    """Return the configuration of a Llama layer with the target's sizes, heads and rotary embedding."""
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


@torch.no_grad()
def _init_weights(head: EagleHead, target: TargetModel, generator: torch.Generator) -> None:
    """Copy the target's final norm and lm_head; draw other matrices, with gain 0.2 before the residual."""
    for name, parameter in head.named_parameters():
        if name.startswith("embedding."):
            continue
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            gain = 0.2 if name.endswith((".out.format.weight", ".down.format.weight")) else 1.0
            parameter.normal_(0.0, gain * parameter.shape[1] ** -0.5, generator=generator)
    if target.spec.norm.kind == "rms":
        head.norm.weight.copy_(target.decoder.norm.weight)
    dense_weight(head.lm_head).copy_(target.lm_head_VE[head.target_ids])
