"""``MedusaTask``: training of Medusa heads on the last hidden states of a frozen target.

The label of a draft token is the target's distribution at the drafted position, because verification compares with that.

Shape suffixes: B sequences · S tokens per sequence · T positions of all sequences · R labelled positions · E hidden size ·
D draft vocabulary · V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.checkpoints.formats.medusa import write_medusa
from hasten.layers.medusa import MedusaHeads, MedusaSpec
from hasten.training.corpus import Batch, Corpus, draft_token_ids
from hasten.training.draft_score import DraftScore, count_accepted, topk_tokens
from hasten.training.lm_head_loss import Labels, lm_head_loss, teacher_probs
from hasten.training.recipes import MedusaRecipe
from hasten.training.target_model import TargetModel

DECAY = 0.8  # loss weight of each head, relative to the one before
OFFSET = 1  # positions from a head's input to the target state that labels head 0


class MedusaTask:
    """The heads start as the identity: each drafts the target's own next token."""

    def __init__(self, target: TargetModel, recipe: MedusaRecipe, corpus: Corpus, seed: int) -> None:
        self.target, self.recipe = target, recipe
        vocab_size = target.spec.vocab_size
        draft_ids_D = draft_token_ids(corpus, recipe.draft_vocab, vocab_size)
        spec = MedusaSpec(
            num_heads=recipe.heads,
            num_layers=recipe.layers,
            hidden_size=target.spec.hidden_size,
            vocab_size=vocab_size,
            truncated_vocab_size=vocab_size if draft_ids_D is None else len(draft_ids_D),
            bias=True,
            lm_head="own" if recipe.lm_head == "own" else "model",
        )
        self.heads = MedusaHeads(spec, target.layer_context)
        self._target_lm_head_DE, self._in_draft_vocab_V = target.lm_head_VE, None
        if draft_ids_D is not None:
            self.heads.token_map = draft_ids_D
            self._target_lm_head_DE = target.lm_head_VE[draft_ids_D]
            self._in_draft_vocab_V = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, draft_ids_D, True)
        with torch.no_grad():
            for name, parameter in self.heads.named_parameters():
                if name.startswith("lm_heads."):
                    parameter.copy_(self._target_lm_head_DE)
                else:
                    parameter.zero_()
        self.heads.requires_grad_(True)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.heads.named_parameters())

    def loss(self, batch: Batch) -> Tensor:
        """Return the divergence from the target's distribution over the draft vocabulary.

        Head i weighs 0.8^i. Positions where the target chooses a token outside the draft vocabulary weigh 0.
        """
        return self._loss(*self._run(batch))

    def evaluate(self, batch: Batch) -> DraftScore:
        """Compare draft tokens with the target's greedy tokens, at positions with labels for all heads."""
        hidden, normed_BSE = self._run(batch)
        count = normed_BSE.shape[1] - OFFSET - len(hidden) + 1
        drafted = [topk_tokens(head_BSE[:, :count].flatten(0, 1), self._lm_head(head)) for head, head_BSE in enumerate(hidden)]
        greedy_BS = self.target.greedy_tokens(normed_BSE)
        labels = [greedy_BS[:, OFFSET + head : OFFSET + head + count].flatten() for head in range(len(hidden))]
        loss = float(self._loss(hidden, normed_BSE))
        return count_accepted(self.heads.token_ids(torch.stack(drafted)), torch.stack(labels), loss)

    def save(self, folder: Path, score: DraftScore) -> None:
        heads = self._heads_with_lm_head() if self.recipe.lm_head == "copy" else self.heads
        base_model = self.target.folder.name
        write_medusa(folder, heads, dtype=self.target.dtype, accuracies=score.accuracies, base_model=base_model)

    def _run(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return each head's hidden states [B, S - 1, E] and the target's lm_head inputs [B, S, E].

        The last position has no label for any head.
        """
        normed_BSE = self.target.normed(self.target.hidden_states(batch.ids_BS)).view(*batch.ids_BS.shape, -1)
        input_BSE = normed_BSE[:, : normed_BSE.shape[1] - OFFSET]
        return [head_TE.view(input_BSE.shape) for head_TE in self.heads.hidden(input_BSE.flatten(0, 1))], normed_BSE

    def _loss(self, hidden: list[Tensor], normed_BSE: Tensor) -> Tensor:
        """Compare head i at a position with the target's distribution i + 1 positions later."""
        mask_V = self._in_draft_vocab_V
        weights_BS = None if mask_V is None else mask_V[self.target.greedy_tokens(normed_BSE)].float()
        losses = []
        for head, head_BSE in enumerate(hidden):
            first = OFFSET + head
            labels_RE = normed_BSE[:, first:].flatten(0, 1)
            labels = Labels(
                teacher=teacher_probs(labels_RE, self._target_lm_head_DE),
                hard_label_weight=0.0,
                row_weights_R=None if weights_BS is None else weights_BS[:, first:].flatten(),
            )
            total = lm_head_loss(head_BSE[:, : head_BSE.shape[1] - head].flatten(0, 1), self._lm_head(head), labels)
            losses.append(total * (DECAY**head / len(labels_RE)))
        return torch.stack(losses).sum()

    def _lm_head(self, head: int) -> Tensor:
        """Return the weight of one head's lm_head, [D, E]."""
        if self.heads.spec.lm_head == "own":
            return self.heads.get_parameter(f"lm_heads.{head}.format.weight")
        return self._target_lm_head_DE

    def _heads_with_lm_head(self) -> MedusaHeads:
        """Return a copy of the heads that holds the target's lm_head."""
        copy = MedusaHeads(dataclasses.replace(self.heads.spec, lm_head="shared"), self.target.layer_context)
        copy.load_state_dict({**self.heads.state_dict(), "lm_heads.0.format.weight": self._target_lm_head_DE})
        copy.token_map = self.heads.token_map
        return copy
