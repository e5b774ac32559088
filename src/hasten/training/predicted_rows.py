"""``predicted_rows``: the positions of a batch whose next token counts in the loss.

Shape suffixes: B sequences · S tokens per sequence · T = B·S tokens · R positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.training.corpus import Batch


@dataclass(frozen=True, slots=True)
class PredictedRows:
    rows_R: Tensor  # int64: indices into the T positions of the flattened batch
    labels_R: Tensor  # int64: the token of the text that follows each


def predicted_rows(batch: Batch) -> PredictedRows:
    """Return the positions before the output tokens, or all but the last of each sequence without a mask."""
    num_sequences, seq_len = batch.ids_BS.shape
    counts_BS = torch.ones_like(batch.ids_BS, dtype=torch.bool) if batch.is_output_BS is None else batch.is_output_BS
    positions_BS = torch.arange(num_sequences * seq_len, device=batch.ids_BS.device).view(num_sequences, seq_len)
    return PredictedRows(positions_BS[:, :-1][counts_BS[:, 1:]], batch.ids_BS[:, 1:][counts_BS[:, 1:]])
