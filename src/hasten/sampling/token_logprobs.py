"""``token_logprobs``: the log-probabilities of tokens, with the most likely ones beside them.

Shape suffixes: N rows · V vocabulary · K top tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core.result import TokenLogprob


def token_logprobs(logits_NV: Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Return the log-probability of one token per row, and ``counts`` of the row's most likely tokens."""
    logprobs_NV = logits_NV.log_softmax(dim=1)
    token_N1 = torch.tensor([[token_id] for token_id in token_ids], dtype=torch.int64, device=logits_NV.device)
    logprob_N1 = logprobs_NV.gather(1, token_N1)
    rank_N = (logprobs_NV > logprob_N1).sum(dim=1).add_(1)
    top_NK = logprobs_NV.topk(min(max(counts), logprobs_NV.shape[1]), dim=1)
    tops = [
        tuple(zip(ids, values, strict=True)) for ids, values in zip(top_NK.indices.tolist(), top_NK.values.tolist(), strict=True)
    ]
    columns = (token_ids, logprob_N1[:, 0].tolist(), rank_N.tolist(), tops, counts)
    return [
        TokenLogprob(token_id, logprob, rank, top[:count]) for token_id, logprob, rank, top, count in zip(*columns, strict=True)
    ]
