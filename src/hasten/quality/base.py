"""``Scorer``: the protocol of a model that returns its next-token logits at every position of a text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Scorer(Protocol):
    """A model that scores given text (teacher forcing) instead of sampling."""

    def logits(self, token_ids: Sequence[int], chunk_size: int) -> Generator[Tensor, None, None]:
        """Yield the logits after each token in order, in chunks of ``chunk_size`` positions. Each [R, V], float32.

        Closing the generator releases what the scorer holds for the text.
        """
        ...
