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
from hasten.sampling.chain import Chain
from hasten.sampling.draw import draw
from hasten.sampling.likeliest import best_tokens
from hasten.sampling.row import SamplingRow


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprob: TokenLogprob | None = None  # only where ``params.logprobs`` asks for it


@dataclass(frozen=True, slots=True)
class Sampler:
    chain: Chain = field(default_factory=Chain)

    def sample(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | None]:
        """The token of each row, None for an unusable row. ``logits_RV`` is float32 and is left alone."""
        assert len(rows) == logits_RV.shape[0]
        if not rows:
            return []
        token_ids = best_tokens(logits_RV)
        shaped = [i for i, row in enumerate(rows) if token_ids[i] is not None and self._shapes(row.params)]
        if shaped:
            chosen = self._shaped(_select(logits_RV, shaped), [rows[i] for i in shaped])
            for i, token_id in zip(shaped, chosen, strict=True):
                token_ids[i] = token_id
        logprobs = _logprobs(logits_RV, rows, token_ids)
        return [None if token is None else SampledToken(token, logprobs.get(i)) for i, token in enumerate(token_ids)]

    def beam_logprobs(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """What beam search scores continuations with [R, V]: log-softmax first, then masks, bias and penalties.

        ``usable`` tells which rows may be searched.
        """
        return self.chain.process(logits_RV.log_softmax(dim=1), rows)

    def logprobs(self, logits_RV: Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int | None]) -> dict[int, TokenLogprob]:
        """Of one token per row, under the raw distribution, where ``params.logprobs`` asks for it. Key: row."""
        return _logprobs(logits_RV, rows, token_ids)

    def _shapes(self, params: SamplingParams) -> bool:
        """Whether such a row needs more than its largest raw logit."""
        return params.temperature != 0 or bool(self.chain.needs(params).processors)

    def _shaped(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
        """The tokens of rows that need it."""
        processed_RV = self.chain.process(logits_RV, rows)
        sampling = [i for i, row in enumerate(rows) if not row.params.greedy]
        greedy = [i for i, row in enumerate(rows) if row.params.greedy]
        token_ids: list[int | None] = [None] * len(rows)
        if greedy:
            for i, token in zip(greedy, best_tokens(_select(processed_RV, greedy)), strict=True):
                token_ids[i] = token
        if sampling:
            drawn = draw(_select(processed_RV, sampling), [rows[i] for i in sampling], self.chain)
            for i, token in zip(sampling, drawn, strict=True):
                token_ids[i] = token
        return token_ids


def usable(scores_RV: Tensor) -> list[bool]:
    """Whether each row has a largest score that is a finite number."""
    finite: list[bool] = scores_RV.amax(dim=1).isfinite().tolist()
    return finite


def _select(values_RV: Tensor, index: list[int]) -> Tensor:
    """Some rows; all of them without a copy."""
    if len(index) == values_RV.shape[0]:
        return values_RV
    return values_RV.index_select(0, torch.tensor(index, device=values_RV.device))


def _logprobs(logits_RV: Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int | None]) -> dict[int, TokenLogprob]:
    """Of the rows that ask for them, under the raw distribution. Key: row."""
    wanted = [(i, token, row.params.logprobs) for i, (row, token) in enumerate(zip(rows, token_ids, strict=True))]
    asked = [(i, token, count) for i, token, count in wanted if token is not None and count is not None]
    if not asked:
        return {}
    logprob_RV = _select(logits_RV, [i for i, _, _ in asked]).log_softmax(dim=1)
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
