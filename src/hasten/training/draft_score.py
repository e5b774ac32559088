"""``DraftScore``: acceptance of draft tokens, or agreement of exits, on validation text.

Shape suffixes: D depths (positions in a draft chain, or exits) · R positions · K top draft tokens, most likely first ·
E hidden size · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

TOP_K = 10  # draft tokens per depth that are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftScore:
    """Counts that add up over batches.

    Depth d (from 0) is draft token d of a chain, or the exit after ``exit_layers[d]`` layers. A position counts if the text is long
    enough for every depth of it. A task without drafts has losses alone.
    """

    loss: float  # summed over positions
    num_positions: int
    accepted: tuple[int, ...]  # [depth] positions where this depth and, in a chain, all earlier ones are right
    reached: tuple[int, ...]  # [depth] positions where all earlier depths are right; exits: all positions
    rank_hits: tuple[tuple[int, ...], ...]  # [depth][rank] positions where the right token has this rank, whatever came earlier
    exit_layers: tuple[int, ...] = ()  # empty: a draft chain

    @classmethod
    def zero(cls) -> DraftScore:
        return cls(loss=0.0, num_positions=0, accepted=(), reached=(), rank_hits=())

    def __add__(self, other: DraftScore) -> DraftScore:
        return DraftScore(
            loss=self.loss + other.loss,
            num_positions=self.num_positions + other.num_positions,
            accepted=_sum(self.accepted, other.accepted),
            reached=_sum(self.reached, other.reached),
            rank_hits=tuple(_sum(a, b) for a, b in zip_longest(self.rank_hits, other.rank_hits, fillvalue=())),
            exit_layers=self.exit_layers or other.exit_layers,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.num_positions)

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Acceptance rate per depth where all earlier depths are accepted; 0 for a depth never reached."""
        return tuple(a / r if r else 0.0 for a, r in zip(self.accepted, self.reached, strict=True))

    @property
    def accepted_length(self) -> float:
        """Mean number of accepted draft tokens per chain."""
        return sum(self.accepted) / max(1, self.num_positions)

    @property
    def accuracies(self) -> tuple[tuple[float, ...], ...]:
        """[depth][rank] share of positions where the right token has this rank. Draft trees are built from it."""
        count = max(1, self.num_positions)
        return tuple(tuple(hits / count for hits in ranks) for ranks in self.rank_hits)

    def describe(self) -> str:
        """Return the acceptance or the agreement, such as ``accepted 41.2% (0.41 tokens)``."""
        shares = " ".join(f"{share:.1%}" for share in self.acceptance)
        if self.exit_layers:
            return f"agreed {shares}"
        return f"accepted {shares} ({self.accepted_length:.2f} tokens)" if self.accepted else ""

    def as_dict(self) -> dict[str, Any]:
        """Return the entries of ``training.json``."""
        entries: dict[str, Any] = {"loss": self.mean_loss, "positions": self.num_positions}
        if not self.accepted:
            return entries
        if self.exit_layers:
            return {**entries, "exits": list(self.exit_layers), "agreement": list(self.acceptance)}
        return {**entries, "acceptance": list(self.acceptance), "accepted_length": self.accepted_length}


def count_accepted(draft_DRK: Tensor, target_DR: Tensor, mean_loss: float, exit_layers: tuple[int, ...] = ()) -> DraftScore:
    """Return the score of the top draft tokens ``draft_DRK`` against the target's tokens ``target_DR``."""
    hits_DRK = draft_DRK == target_DR[:, :, None]
    right_DR = hits_DRK[:, :, 0].long()
    num_positions = target_DR.shape[1]
    accepted = tuple(int(count) for count in (right_DR if exit_layers else right_DR.cumprod(dim=0)).sum(1))
    return DraftScore(
        loss=mean_loss * num_positions,
        num_positions=num_positions,
        accepted=accepted,
        reached=(num_positions,) * len(exit_layers) if exit_layers else (num_positions, *accepted[:-1]),
        rank_hits=tuple(tuple(int(count) for count in ranks) for ranks in hits_DRK.sum(1)),
        exit_layers=exit_layers,
    )


def topk_tokens(hidden_RE: Tensor, lm_head_VE: Tensor, block_elements: int = 1 << 23) -> Tensor:
    """Return the ``TOP_K`` most likely tokens [R, K] in order, computed in blocks of logits."""
    block = max(1, block_elements // len(lm_head_VE))
    count = min(TOP_K, len(lm_head_VE))
    return torch.cat([(rows @ lm_head_VE.T).topk(count).indices for rows in torch.split(hidden_RE, block)])


def _sum(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(left, right, fillvalue=0))
