"""The likeliest tokens of a place that somebody guesses, in the order in which the line would choose them.

A line that samples adds the noise of the place to its logits, and so must whoever guesses what it will choose (arXiv 2408.07978).
Only where a rule of acceptance draws its own verdicts from that noise, guesses must be made without it.

Shape suffixes: R lines · V vocabulary of the guesser · K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.sampling.noise import gumbel
from hasten.speculative.drafters.base import DraftRequest

LISTED = 32  # by logit, among which the noise chooses


def candidates(
    logits_RV: Tensor, lines: Sequence[DraftRequest], ahead: Sequence[int], token_ids: Callable[[Tensor], Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """(token ids, how likely each is to be chosen by ``logits_RV``) of the first ``count`` tokens of each row, [R, K] each.

    Row r is for the token ``ahead[r]`` places after the next one of ``lines[r]``. ``token_ids``: columns of the logits -> the
    model's tokens.
    """
    value_RK, place_RK = logits_RV.topk(min(max(LISTED, count), logits_RV.shape[1]), dim=1)
    chance_RK = logits_RV.softmax(dim=1).gather(1, place_RK)
    token_RK = token_ids(place_RK)
    params_R = [line.request.params for line in lines]
    drawing = [row for row, params in enumerate(params_R) if not params.greedy and params.acceptance == "exact"]
    if drawing:
        index_N = torch.tensor(drawing)
        keys = [(params_R[row].seed or 0, lines[row].answer_index, len(lines[row].token_ids) + ahead[row]) for row in drawing]
        seed_N, sequence_N, position_N = torch.tensor(keys, dtype=torch.int64).T
        temperature_N1 = torch.tensor([[params_R[row].temperature] for row in drawing])
        sum_NK = value_RK[index_N] / temperature_N1 + gumbel(seed_N, sequence_N, position_N, token_RK[index_N])
        order_NK = sum_NK.argsort(dim=1, descending=True, stable=True)
        token_RK[index_N] = token_RK[index_N].gather(1, order_NK)
        # With its noise known a choice is no longer open: how far it leads says how sure it is.
        chance_RK[index_N] = sum_NK.gather(1, order_NK).softmax(dim=1).float()
    return token_RK[:, :count], chance_RK[:, :count]
