"""The protocol of a logits processor.

Shape suffixes of this package: R rows · V vocabulary · K candidates of a row · N listed tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from hasten.core.sampling_params import SamplingParams
from hasten.sampling.row import SamplingRow


class LogitsProcessor(Protocol):
    """The effect of one setting on rows of logits. It is stateless, and one object serves every request."""

    def applies(self, params: SamplingParams) -> bool:
        """Return whether rows with these settings need this processor. Other rows are never passed to it."""
        ...

    def __call__(self, logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """Return the processed logits [R, V], float32.

        ``rows[i]`` describes ``logits_RV[i]``; the processor applies to every row, with the settings of that row. A row's
        result depends on that row alone. The argument may be written to and returned. -inf marks a token that cannot be
        sampled. A row that is -inf everywhere stays so and never becomes NaN.
        """
        ...
