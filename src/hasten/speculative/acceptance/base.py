"""``AcceptanceRule``: chooses the next token from the target's distribution and draft tokens.

A draft token is accepted if it is the chosen token. A rule is asked once for each position that the accepted path reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class DraftToken(NamedTuple):
    token_id: int
    # The distribution [V] that it was sampled from, with random numbers that nothing else uses. None: it was not sampled.
    draft_prob_V: Tensor | None = None


class Rng(Protocol):
    """The random numbers of one position, independent of those that drafts are sampled with."""

    def bernoulli(self, probability: float) -> bool:
        """Return True with this probability; each call is independent."""
        ...

    def sample(self, p_V: Tensor) -> int:
        """Return a token of this distribution. Called once."""
        ...


class AcceptanceRule(Protocol):
    def choose(self, p_V: Tensor, draft_tokens: Sequence[DraftToken], rng: Rng) -> int:
        """Return the next token. ``draft_tokens`` is not empty.

        ``p_V``: what plain decoding samples from, float64, of sum 1.
        """
        ...
