"""``Scorer``: whatever can read a text and say, at every token of it, what it expects next."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Scorer(Protocol):
    def logits(self, token_ids: Sequence[int], piece: int) -> Generator[Tensor, None, None]:
        """The logits after each token, in order, ``piece`` tokens at a time and the rest at the end. Each [R, V], float32.

        The text is given, nothing is sampled. Closing the generator ends the reading.
        """
        ...
