"""Tensors for rows with different settings: some of the rows, one number per row, token ids per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenIndex = tuple[Tensor, Tensor]  # (row_N, token_N), int64: ``logits_RV[index]`` has one entry per listed token


def select_rows(values_RV: Tensor, index: Sequence[int]) -> Tensor:
    """Return the rows at ``index``, which ascends; without a copy if it names every row."""
    if len(index) == values_RV.shape[0]:
        return values_RV
    if values_RV.device.type == "cpu" and values_RV.dtype == torch.float32:
        # PyTorch copies with all threads, which spin afterwards and slow the kernels' own.
        return torch.from_numpy(values_RV.detach().numpy()[list(index)])
    return values_RV.index_select(0, torch.tensor(index, dtype=torch.int64, device=values_RV.device))


def column(values: Iterable[float], logits_RV: Tensor) -> Tensor:
    """Return one number per row as a column [R, 1] that broadcasts over the logits, in their dtype."""
    return torch.tensor(list(values), dtype=logits_RV.dtype, device=logits_RV.device).unsqueeze(1)


def token_index(token_ids: Sequence[Sequence[int]], logits_RV: Tensor) -> TokenIndex:
    """Return the index of the tokens listed for each row. Ids that are not in the vocabulary are left out."""
    return token_index_and_values(token_ids, None, logits_RV)[0]


def token_index_and_values(
    token_ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]] | None, logits_RV: Tensor
) -> tuple[TokenIndex, Tensor]:
    """Return ``token_index`` and the value of each entry [N], float32; its token without ``values``."""
    token_N = _concatenate(token_ids, np.int64)
    value_N = token_N if values is None else _concatenate(values, np.float32)
    row_N = np.repeat(np.arange(len(token_ids)), [len(ids) for ids in token_ids])
    known_N = (token_N >= 0) & (token_N < logits_RV.shape[1])
    row, token, value = (torch.from_numpy(part_N[known_N]).to(logits_RV.device) for part_N in (row_N, token_N, value_N))
    return (row, token), value


def _concatenate(lists: Sequence[Sequence[float]], dtype: type[np.generic]) -> NDArray[Any]:
    """Return all lists in one array; an ``array.array`` is copied as a block, a list number by number."""
    return np.concatenate([np.array(numbers, dtype=dtype) for numbers in lists])
