"""What a drafter is: it guesses the next tokens of a sequence, and the model verifies all of them in one step.

Leviathan et al., 2022 (arXiv 2211.17192). A guess is accepted as far as it equals the tokens that plain decoding would have drawn
(each position has one sample, ``hasten.sampling.noise``), so a drafter can make output faster or slower but never other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hasten.core.request import Request


class Line(NamedTuple):
    """A sequence that wants a draft."""

    sequence_id: int  # never used again for another one
    token_ids: Sequence[int]  # the prompt, then the answer so far; it only ever grows
    request: Request
    answer_index: int  # which answer of the request: part of the key of its noise


class Drafter(Protocol):
    """Lives as long as the engine."""

    def propose(self, lines: Sequence[Line]) -> Sequence[tuple[int, ...]]:
        """A guess for each line, perhaps an empty one; ids of the target's vocabulary.

        Called after every step with all lines that decode. What the drafter remembers of others it may forget: a sequence that
        comes back after preemption is a new one to it.
        """
        ...
