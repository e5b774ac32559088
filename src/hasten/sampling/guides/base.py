"""``TokenGuide``: which tokens an output may go on with.

Shape suffix: W = ceil(vocabulary / 32) words of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.core.request import Request

MaskWords = NDArray[np.int32]  # bit t % 32 of word t // 32 tells whether token t is allowed


class TokenGuide(Protocol):
    """Guides the outputs of one request. Every answer follows from the tokens of an output alone.

    So drafts, forks and preemption cannot make a guide wrong. ``token_ids`` are those of an output so far, without the prompt.
    A method raises ``HastenError`` where the guide cannot go on: the output is no prefix of an allowed one, or a limit is exceeded.
    """

    @property
    def failure(self) -> str | None:
        """Why the guide could not go on; None while it can."""

    def forced_tokens(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Return the tokens that have to come next, whatever the model says; empty where it has a choice."""

    def mask(self, token_ids: Sequence[int]) -> MaskWords | None:
        """Return the mask of the next token [W], valid until the next call; None if every token is allowed.

        Asked only where no token is forced.
        """

    def num_allowed(self, token_ids: Sequence[int], next_tokens: Sequence[int]) -> int:
        """Return how many of ``next_tokens``, a draft, are allowed one after the other.

        Fewer, if the draft is not worth the time of its masks.
        """

    def is_complete(self, token_ids: Sequence[int]) -> bool:
        """Return whether the output may end here. ``token_ids`` are without the token that ended it."""


# Makes the guide of a request's outputs; None for a request without one.
GuideFactory = Callable[[Request], TokenGuide | None]


def no_guide(request: Request) -> None:
    """Make no guide, for an engine without a tokenizer."""
