"""What a logits processor is.

Shape suffixes of this package: R rows · V vocabulary · K candidates of a row · N (row, token) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow
from hasten.sampling.shortlist import Shortlist


class LogitsProcessor(Protocol):
    """One setting's effect on rows of logits. Stateless; the same object serves every request."""

    def applies(self, params: SamplingParams) -> bool:
        """Whether a row with these settings needs this processor at all. A row that does not is never handed to it."""
        ...

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """The processed logits [R, V], float32.

        ``rows[i]`` describes ``logits_RV[i]``; every row applies, each with its own value. A row's result depends on that
        row alone. The argument belongs to the processor: it may be written to, and may be what is returned.
        -inf marks a token that cannot be chosen; a row that is all -inf stays so and never becomes NaN.
        """
        ...


@runtime_checkable
class Shortening(Protocol):
    """A warper that keeps the order of the tokens, and so can work on the likeliest of them alone."""

    def shorten(self, listed: Shortlist, rows: Sequence[SamplingRow]) -> None:
        """What calling it does to the vocabulary, done to the list; some of the rows may not apply.

        Afterwards ``decided_R`` is False wherever the list does not prove which tokens stay.
        """
        ...
