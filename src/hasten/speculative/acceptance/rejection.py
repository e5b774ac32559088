"""Speculative sampling by rejection (Leviathan et al., 2022, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318).

A guess drawn from q is accepted with probability p/q, and where it is not, what is left to draw from is (p - q)+. Further guesses
for the same place are tried on what is left, one after the other (Miao et al., 2023, arXiv 2305.09781). Whatever q is, the token
has the distribution p. It is lossless in distribution, not token by token: another drafter draws another answer from the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.speculative.acceptance.base import Chance, Guess


@dataclass(frozen=True, slots=True)
class Rejection:
    @classmethod
    def of(cls, params: SamplingParams) -> Rejection:
        return cls()

    def choose(self, p_V: Tensor, guesses: Sequence[Guess], chance: Chance) -> int:
        left_V = p_V
        for token_id, proposal_V in guesses:
            p = float(left_V[token_id])
            q = 1.0 if proposal_V is None else float(proposal_V[token_id])
            if p > 0 and chance.accepts(p / q if q > 0 else 1.0):
                return token_id
            left_V = _without(left_V, token_id, proposal_V)
        return chance.draws(left_V)


def _without(p_V: Tensor, token_id: int, proposal_V: Tensor | None) -> Tensor:
    """(p - q)+, of sum 1."""
    if proposal_V is None:
        left_V = p_V.clone()
        left_V[token_id] = 0.0
    else:
        left_V = (p_V - proposal_V).clamp_(min=0.0)
    total = float(left_V.sum())
    # Where p and q are equal but for their rounding, a rejection is a rounding too, and nothing is left.
    return left_V / total if total > 0 else p_V
