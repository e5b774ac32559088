"""One token per row of logits, for rows with different settings.

A greedy row takes the largest processed logit. A sampling row takes the largest sum of warped logit and counter-based noise
(``hasten.sampling.noise``). Its token depends on its own logits, settings, seed and position alone: not on other rows, the
step, preemption or timing.

A row is unusable if its logits hold NaN or +inf, if every token is masked, or if its settings drive a logit beyond float32.
An unusable row yields None and disturbs no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hasten.core.result import TokenLogprob
from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.row_tensors import select_rows
from hasten.sampling.token_logprobs import token_logprobs
from hasten.sampling.token_selector import TokenSelector, TorchTokenSelector, argmax_tokens


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None  # only if ``params.logprobs`` is set


@dataclass(frozen=True, slots=True)
class Sampler:
    selector: TokenSelector = field(default_factory=TorchTokenSelector)

    def sample(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        """Return the token of each row, None for an unusable row. ``logits_RV`` is float32 and unchanged."""
        token_ids = self.sample_token_ids(logits_RV, rows)
        logprobs = self.logprobs(logits_RV, rows, token_ids)
        return [None if token_id is None else SampledToken(token_id, logprobs.get(i)) for i, token_id in enumerate(token_ids)]

    def sample_token_ids(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        """Return what ``sample`` does, without log-probabilities."""
        assert len(rows) == logits_RV.shape[0]
        if not rows:
            return []
        index = [i for i, row in enumerate(rows) if self.needs_processors(row.params)]
        if not index:
            return self.selector.select(logits_RV, rows)
        if len(index) == len(rows):
            token_ids = self.selector.select(self.selector.chain.process(logits_RV, rows), rows)
        else:  # a copy of all rows would take longer than their processors
            own = [rows[i] for i in index]
            processed_NV = self.selector.chain.process(select_rows(logits_RV, index), own, may_write=True)
            token_ids = self.selector.select(logits_RV, rows, skipped=frozenset(index))
            for i, token_id in zip(index, self.selector.select(processed_NV, own), strict=True):
                token_ids[i] = token_id
        # A mask could hide NaN or +inf, so the raw logits are checked too.
        for i, top_token in zip(index, argmax_tokens(logits_RV, index), strict=True):
            if top_token is None:
                token_ids[i] = None
        return token_ids

    def needs_processors(self, params: SamplingParams) -> bool:
        """Return whether masks, bias or penalties apply to rows with these settings."""
        return bool(self.selector.chain.active(params).processors)

    def beam_logprobs(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Return the scores of beam search [R, V]: log-softmax, then masks, bias and penalties.

        ``rows_are_finite`` tells which rows are usable.
        """
        return self.selector.chain.process(logits_RV.log_softmax(dim=1), rows)

    def probabilities(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Return what ``sample`` draws from [R, V], float64; NaN in unusable rows. No row may be greedy."""
        chain = self.selector.chain
        return chain.warp(chain.process(logits_RV, rows), rows).double().softmax(dim=1)

    def logprobs(self, logits_RV: Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int | None]) -> dict[int, TokenLogprob]:
        """Return raw log-probabilities by row, for rows that have a token and ``params.logprobs``."""
        index = [i for i, row in enumerate(rows) if row.params.logprobs is not None and token_ids[i] is not None]
        if not index:
            return {}
        counts = [rows[i].params.logprobs or 0 for i in index]
        chosen = [token_id for i in index if (token_id := token_ids[i]) is not None]
        return dict(zip(index, token_logprobs(select_rows(logits_RV, index), chosen, counts), strict=True))


def rows_are_finite(scores_RV: Tensor) -> list[bool]:
    """Return whether each row's largest score is a finite number; false if the row holds NaN."""
    is_finite: list[bool] = scores_RV.amax(dim=1).isfinite().tolist()
    return is_finite
