"""``Embedding``: one learned row per token or per position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """Allocated, not initialised."""

    def __init__(self, num_rows: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, size, dtype=dtype, device=device), requires_grad=False)

    def forward(self, ids_T: Tensor) -> Tensor:
        return F.embedding(ids_T, self.weight)
