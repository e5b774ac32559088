"""Candidates for a position: the most likely samples of a request, by a drafter's logits.

A sampling request adds the noise of the position to its logits, so the drafter adds the same noise (arXiv 2408.07978). Rejection
sampling draws its accept decisions from that noise, so drafts for it are made without.

Shape suffixes: R rows · V vocabulary of the drafter · K candidates · N rows with noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.sampling.noise import gumbel_noise
from hasten.speculative.drafters.base import DraftRequest

PREFILTER = 32  # tokens with the largest logits, among which the noise chooses


def top_candidates(
    logits_RV: Tensor, requests: Sequence[DraftRequest], offsets: Sequence[int], token_ids: Callable[[Tensor], Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Return token ids and sampling probabilities of each row's best candidates, [R, K] each.

    Row r stands ``offsets[r]`` positions after the next token of ``requests[r]``. ``token_ids`` maps columns to the target's ids.
    """
    value_RK, column_RK = logits_RV.topk(min(max(PREFILTER, count), logits_RV.shape[1]), dim=1)
    prob_RK = logits_RV.softmax(dim=1).gather(1, column_RK)
    token_RK = token_ids(column_RK)
    params_R = [request.request.params for request in requests]
    noisy = [row for row, params in enumerate(params_R) if not params.greedy and params.acceptance == "exact"]
    if noisy:
        index_N = torch.tensor(noisy, dtype=torch.int64, device="cpu")
        keys = [(params_R[i].seed or 0, requests[i].output_index, len(requests[i].token_ids) + offsets[i]) for i in noisy]
        seed_N, sequence_N, position_N = torch.tensor(keys, dtype=torch.int64, device="cpu").T
        temperature_N1 = torch.tensor([[params_R[row].temperature] for row in noisy], dtype=torch.float32, device="cpu")
        sum_NK = value_RK[index_N] / temperature_N1 + gumbel_noise(seed_N, sequence_N, position_N, token_RK[index_N])
        order_NK = sum_NK.argsort(dim=1, descending=True, stable=True)
        token_RK[index_N] = token_RK[index_N].gather(1, order_NK)
        # With its noise known a sample is no longer random: the lead of the winner tells how certain it is.
        prob_RK[index_N] = sum_NK.gather(1, order_NK).softmax(dim=1).float()
    return token_RK[:, :count], prob_RK[:, :count]
