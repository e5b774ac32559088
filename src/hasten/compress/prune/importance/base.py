"""``Importance``: a method that scores the heads, neurons and channels of a model.

Shape suffixes: B sequences · S tokens per sequence · L layers that stay · K key/value heads · H query heads · F neurons ·
E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hasten.compress.prune.layer_subset import LayerSubset


@dataclass(frozen=True, slots=True)
class ImportanceScores:
    """The lowest scores of each row are removed. Rows are not compared, so they need no common unit."""

    groups_LK: Tensor  # of a key/value head with its query heads
    heads_LH: Tensor  # of a query head, compared with the others of its group
    neurons_LF: Tensor
    channels_E: Tensor


def shares(squares: Tensor) -> Tensor:
    """Return what each is of the sum; zeros of a matrix of zeros."""
    return squares / squares.sum(-1, keepdim=True).clamp_min(torch.finfo(squares.dtype).tiny)


class Importance(Protocol):
    """One method. Each file of ``importance`` holds one as ``METHOD``; the file's name is its name."""

    def measure(self, subset: LayerSubset, ids_BS: Tensor, seed: int, tick: Callable[[], None]) -> ImportanceScores:
        """Return the scores on calibration sequences.

        ``tick`` is called after each batch, and what it raises passes. No parameter and no gradient of the model changes.
        """
        ...
