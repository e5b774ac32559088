"""Rejection sampling (Leviathan et al., 2022, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318).

A draft token sampled from q is accepted with probability p/q; after a rejection the residual distribution is (p - q)+. Further
draft tokens of the position are tried on the residual (Miao et al., 2023, arXiv 2305.09781). The token has the distribution p with
any q: lossless in distribution, not token by token, as another drafter samples another output from the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance.base import DraftToken, Rng


@dataclass(frozen=True, slots=True)
class Rejection:
    @classmethod
    def from_params(cls, params: SamplingParams) -> Rejection:
        return cls()

    def choose(self, p_V: Tensor, draft_tokens: Sequence[DraftToken], rng: Rng) -> int:
        residual_V = p_V
        for token_id, draft_prob_V in draft_tokens:
            p = float(residual_V[token_id])
            q = 1.0 if draft_prob_V is None else float(draft_prob_V[token_id])
            if p > 0 and rng.bernoulli(p / q if q > 0 else 1.0):
                return token_id
            residual_V = _residual(residual_V, token_id, draft_prob_V)
        return rng.sample(residual_V)


def _residual(p_V: Tensor, token_id: int, draft_prob_V: Tensor | None) -> Tensor:
    """Return (p - q)+, normalised."""
    if draft_prob_V is None:
        residual_V = p_V.clone()
        residual_V[token_id] = 0.0
    else:
        residual_V = (p_V - draft_prob_V).clamp_(min=0.0)
    total = float(residual_V.sum())
    # Where p and q differ by rounding alone, a rejection is a rounding error too and nothing remains.
    return residual_V / total if total > 0 else p_V
