"""Some of the rows of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def select_rows(values_RV: Tensor, index: Sequence[int]) -> Tensor:
    """The rows at the places ``index``, which are in order; all of them without a copy."""
    if len(index) == values_RV.shape[0]:
        return values_RV
    return values_RV.index_select(0, torch.tensor(index, device=values_RV.device))
