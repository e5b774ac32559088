"""The token of each sampling row: from a short list of its likeliest tokens where that is enough, else from the whole vocabulary.

Both ways give the same token; the list is many times cheaper. A list is enough when every warper of the row can tell from it
which tokens stay, and when no token outside of it can win: either none stays, or none has noise enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hasten.sampling.chain import Chain
from hasten.sampling.gumbel_argmax import CHUNK, gumbel_argmax
from hasten.sampling.noise_search import Doubles, Ints, Unsigned, louder_tokens, noise_of, streams_of, token_bits
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist
from hasten.sampling.topk import CLASSES

# Tokens of a list: what mostly is enough, and what is tried before the whole vocabulary.
SIZES = (64, 256, 1024)
# Top-k wants a few tokens past the k-th, so that a tie with it shows.
SPARE = 8


def draw(logits_RV: Tensor, rows: Sequence[SamplingRow], chain: Chain) -> list[int | None]:
    """The token of each row of processed logits, none of which is greedy; None where the row's settings leave no rows_are_finite number."""
    tokens: list[int | None] = [None] * len(rows)
    left = list(range(len(rows)))
    if logits_RV.device.type == "cpu":
        for size in SIZES:
            if not left or size * CLASSES > logits_RV.shape[1]:
                break
            left = _draw_listed(logits_RV, rows, left, size, chain, tokens)
    if left:
        some_RV = logits_RV if len(left) == len(rows) else logits_RV[torch.tensor(left, device=logits_RV.device)]
        some = [rows[i] for i in left]
        for i, token in zip(left, gumbel_argmax(chain.warp(some_RV, some), some), strict=True):
            tokens[i] = token
    return tokens


def _draw_listed(
    logits_RV: Tensor, rows: Sequence[SamplingRow], index: list[int], size: int, chain: Chain, tokens: list[int | None]
) -> list[int]:
    """Writes the tokens of the rows that lists of ``size`` decide; returns the other rows."""
    each = [(i, rows[i].params) for i in index]
    suited = [i for i, p in each if (p.top_k or 0) + SPARE <= size and chain.needs(p).shortening is not None]
    left = set(index).difference(suited)
    step = max(1, CHUNK // logits_RV.shape[1])
    for begin in range(0, len(suited), step):
        part = suited[begin : begin + step]
        whole = len(part) == len(rows)
        some_RV = logits_RV if whole else logits_RV[part[0] : part[-1] + 1] if _adjacent(part) else logits_RV[torch.tensor(part)]
        with np.errstate(all="ignore"):  # rows of unusable numbers are told by their result
            found = _winners(some_RV, [rows[i] for i in part], size, chain)
        for i, (decided, token) in zip(part, found, strict=True):
            if decided:
                tokens[i] = token
            else:
                left.add(i)
    return sorted(left)


def _adjacent(index: list[int]) -> bool:
    return index[-1] - index[0] == len(index) - 1


def _winners(logits_RV: Tensor, rows: Sequence[SamplingRow], size: int, chain: Chain) -> list[tuple[bool, int | None]]:
    """(whether the list was enough, the winner) of each row."""
    listed = Shortlist.of(logits_RV, size)
    chain.shorten(listed, rows)
    stream_R = streams_of(rows)
    # Most warpers leave few of the listed tokens, and these come first.
    width = max(1, int(np.count_nonzero(listed.value_RK > -np.inf, axis=1).max()))
    token_RK, value_RK = listed.token_RK[:, :width], listed.value_RK[:, :width]
    sum_RK = noise_of(token_bits(stream_R[:, None], token_RK)) + value_RK
    sum_R = sum_RK.max(axis=1)
    winner_R = np.where(sum_RK == sum_R[:, None], token_RK, logits_RV.shape[1]).min(axis=1)
    finite_R = np.isfinite(sum_R)
    outside_R = listed.open_R & listed.decided_R & finite_R
    if outside_R.any():
        _let_others_in(listed, np.flatnonzero(outside_R), stream_R, sum_R, winner_R)
    results = zip(listed.decided_R.tolist(), winner_R.tolist(), finite_R.tolist(), strict=True)
    return [(decided, token if finite else None) for decided, token, finite in results]


def _let_others_in(listed: Shortlist, rows: Ints, stream_R: Unsigned, sum_R: Doubles, winner_R: Ints) -> None:
    """Where tokens past the list take part, look at those whose noise makes up for the distance. Writes better winners."""
    # noise > missing exactly if uniform > exp(-exp(-missing)); the margin is far above the rounding of either.
    missing_N = np.maximum(sum_R[rows] - listed.floor_R[rows], -6.0)
    uniform_N = np.exp(-np.exp(-missing_N)) - 1e-9
    found = louder_tokens(stream_R[rows], listed.logits_RV.shape[1], uniform_N)
    row_N = np.repeat(rows, [len(tokens) for tokens in found])
    token_N = np.concatenate(found)
    value_N = listed.logits_RV.numpy()[row_N, token_N] / listed.scale_R[row_N]
    sum_N = noise_of(token_bits(stream_R[row_N], token_N)) + value_N
    for i in np.flatnonzero(sum_N >= sum_R[row_N]):
        row, token, total = row_N[i], token_N[i], sum_N[i]
        if total > sum_R[row] or token < winner_R[row]:
            sum_R[row], winner_R[row] = total, token
