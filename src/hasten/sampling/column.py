"""One setting of each row as a column that broadcasts over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def column(values: Iterable[float], logits_RV: Tensor) -> Tensor:
    """[R, 1], in the dtype of the logits and where they are."""
    return torch.tensor(list(values), dtype=logits_RV.dtype, device=logits_RV.device).unsqueeze(1)
