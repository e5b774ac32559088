"""How often guesses come true, by how likely their guesser finds them.

A guesser learns how likely the model finds a token. A line that decodes greedily takes the likeliest one, however likely that is:
of first choices that are said to have a chance of a quarter, seven of ten may be right. Which share it is shows while guesses are
judged: a histogram over what is said (Zadrozny and Elkan, 2001), in which old verdicts count less and less.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

KEPT = 0.99  # what a verdict still counts for after the next one of its kind: about the last hundred matter
WEIGHT = 4.0  # how many verdicts it takes to count as much as what is said
WIDEST = 6  # what is said is told apart down to odds of 1 to 2^6, and up to 2^6 to 1


@dataclass(slots=True)
class Trust:
    """Kinds of guesses are told apart by whatever their guesser names them."""

    _judged: dict[tuple[Hashable, int], float] = field(default_factory=dict)
    _right: dict[tuple[Hashable, int], float] = field(default_factory=dict)

    def chance(self, kind: Hashable, said: float) -> float:
        """That a guess is right if everything before it is. 0 for what is no chance (NaN)."""
        if not said > 0.0:
            return 0.0
        key = kind, _bin(said)
        return (self._right.get(key, 0.0) + WEIGHT * said) / (self._judged.get(key, 0.0) + WEIGHT)

    def note(self, kind: Hashable, said: float, *, right: bool) -> None:
        if said > 0.0:
            key = kind, _bin(said)
            self._judged[key] = KEPT * self._judged.get(key, 0.0) + 1.0
            self._right[key] = KEPT * self._right.get(key, 0.0) + right


def _bin(said: float) -> int:
    """One for each doubling of the odds."""
    return round(max(-WIDEST, min(WIDEST, math.log2(said / (1.0 - said))))) if said < 1.0 else WIDEST
