"""One token per row of logits, for rows of mixed settings.

A greedy row takes the largest processed logit. A sampling row takes the largest sum of warped logit and counter-based noise
(``hasten.sampling.noise``), so its token depends on its own logits, settings, seed and position and on nothing else: not on
its neighbours, the step, preemption or timing.

A row is unusable when its logits hold NaN or +inf, when nothing is left to choose from, or when its settings drive a logit
beyond float32. Such a row yields None and disturbs no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.select_rows import select_rows
from hasten.sampling.token_selector import TokenSelector, TorchTokenSelector
from hasten.sampling.topk import argmax_tokens


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None  # only where ``params.logprobs`` asks for it


@dataclass(frozen=True, slots=True)
class Sampler:
    selector: TokenSelector = field(default_factory=TorchTokenSelector)

    def sample(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        """The token of each row, None for an unusable row. ``logits_RV`` is float32 and is left alone."""
        token_ids = self.tokens(logits_RV, rows)
        logprobs = _logprobs(logits_RV, rows, token_ids)
        if not logprobs:
            return [None if token is None else SampledToken(token) for token in token_ids]
        return [None if token is None else SampledToken(token, logprobs.get(i)) for i, token in enumerate(token_ids)]

    def tokens(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        """``sample`` without log-probabilities."""
        assert len(rows) == logits_RV.shape[0]
        if not rows:
            return []
        shaped = any(self.shapes(row.params) for row in rows)
        return self._choose(logits_RV, rows) if shaped else self.selector.choose(logits_RV, rows)

    def shapes(self, params: SamplingParams) -> bool:
        """Whether masks, bias or penalties act on a row of these settings."""
        return bool(self.selector.chain.needs(params).processors)

    def beam_logprobs(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """What beam search scores continuations with [R, V]: log-softmax first, then masks, bias and penalties.

        ``rows_are_finite`` tells which rows may be searched.
        """
        return self.selector.chain.process(logits_RV.log_softmax(dim=1), rows)

    def logprobs(self, logits_RV: Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int | None]) -> dict[int, TokenLogprob]:
        """Of one token per row, under the raw distribution, where ``params.logprobs`` asks for it. Key: row."""
        return _logprobs(logits_RV, rows, token_ids)

    def probabilities(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """What ``tokens`` draws from [R, V], float64; no row may be greedy. A row that cannot be drawn from is NaN."""
        chain = self.selector.chain
        return chain.warp(chain.process(logits_RV, rows), rows).double().softmax(dim=1)

    def _choose(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        """The tokens, where masks, bias or penalties act on some rows. Those must be rows_are_finite before these do."""
        plain: list[int] = []
        shaped: list[int] = []
        for i, row in enumerate(rows):
            (shaped if self.shapes(row.params) else plain).append(i)
        best = argmax_tokens(select_rows(logits_RV, shaped))
        shaped = [i for i, token in zip(shaped, best, strict=True) if token is not None]
        token_ids: list[int | None] = [None] * len(rows)
        for index in (plain, shaped):
            if index:
                some = [rows[i] for i in index]
                some_RV = select_rows(logits_RV, index)
                for i, token in zip(index, self.selector.choose(self.selector.chain.process(some_RV, some), some), strict=True):
                    token_ids[i] = token
        return token_ids


def rows_are_finite(scores_RV: Tensor) -> list[bool]:
    """Whether each row has a largest score that is a finite number."""
    finite: list[bool] = scores_RV.amax(dim=1).isfinite().tolist()
    return finite


def _logprobs(logits_RV: Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int | None]) -> dict[int, TokenLogprob]:
    """Of the rows that ask for them, under the raw distribution. Key: row."""
    wanted = [(i, token_ids[i], row.params.logprobs) for i, row in enumerate(rows) if row.params.logprobs is not None]
    asked = [(i, token, count) for i, token, count in wanted if token is not None]
    if not asked:
        return {}
    logprob_RV = select_rows(logits_RV, [i for i, _, _ in asked]).log_softmax(dim=1)
    chosen_R1 = logprob_RV.gather(1, torch.tensor([[token] for _, token, _ in asked], device=logits_RV.device))
    ranks = (logprob_RV > chosen_R1).sum(dim=1).add_(1).tolist()
    top = logprob_RV.topk(min(max(count for _, _, count in asked), logprob_RV.shape[1]), dim=1)
    values, tokens = top.values.tolist(), top.indices.tolist()
    return {
        i: TokenLogprob(token, logprob, rank, tuple(zip(top_tokens[:count], top_values[:count], strict=True)))
        for (i, token, count), logprob, rank, top_tokens, top_values in zip(
            asked, chosen_R1[:, 0].tolist(), ranks, tokens, values, strict=True
        )
    }
