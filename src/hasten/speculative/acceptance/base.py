"""What a rule of acceptance is: given the model's distribution at a place and the guesses for it, it says the token.

A guess is accepted if it is that token. A rule is asked once at every place that an accepted path comes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Guess(NamedTuple):
    token_id: int
    # The distribution that it was drawn from [V], with numbers that nothing else has used. None: it was not drawn.
    proposal_V: Tensor | None = None


class Chance(Protocol):
    """The random numbers of one place. They do not depend on the guesses, nor on whatever the guesses were drawn with."""

    def accepts(self, probability: float) -> bool:
        """True with this probability (or more than 1); asked again it answers independently."""
        ...

    def draws(self, p_V: Tensor) -> int:
        """A token of this distribution. Asked once."""
        ...


class Acceptance(Protocol):
    def choose(self, p_V: Tensor, guesses: Sequence[Guess], chance: Chance) -> int:
        """``p_V``: what plain decoding draws from here, float64, of sum 1. There is at least one guess."""
        ...
