"""From guesses and what they should have been to a ``DraftScore``.

Shape suffixes: D depths · R positions · K guesses per depth, the likeliest first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.training.draft_score import DraftScore

RANKS = 10  # guesses per depth that are looked at


def count_accepted(guesses_DRK: Tensor, wanted_DR: Tensor, mean_loss: float, exits: tuple[int, ...] = ()) -> DraftScore:
    """``wanted_DR[d, r]`` is the token that depth d at position r should have guessed: depths of a chain, or ``exits``."""
    hits_DRK = guesses_DRK == wanted_DR[:, :, None]
    right_DR = hits_DRK[:, :, 0].long()
    num_positions = wanted_DR.shape[1]
    right = tuple(int(count) for count in (right_DR if exits else right_DR.cumprod(dim=0)).sum(1))
    return DraftScore(
        loss=mean_loss * num_positions,
        num_positions=num_positions,
        right=right,
        seen=(num_positions,) * len(exits) if exits else (num_positions, *right[:-1]),
        ranks=tuple(tuple(int(count) for count in depth) for depth in hits_DRK.sum(1)),
        exits=exits,
    )


def likeliest(hidden_RE: Tensor, weight_VE: Tensor, block_elements: int = 1 << 23) -> Tensor:
    """The ``RANKS`` tokens of the largest logits, in order, without all logits in memory at a time. [R, K]"""
    block = max(1, block_elements // len(weight_VE))
    count = min(RANKS, len(weight_VE))
    return torch.cat([(rows @ weight_VE.T).topk(count).indices for rows in torch.split(hidden_RE, block)])
