"""``ConfidenceMeasure``: a number between 0 and 1 that says how sure a state is. A token leaves where it is above the request's threshold.

Shape suffixes: R rows · E hidden size · V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hasten.layers.exits import Exit


@dataclass(slots=True)
class Reading:
    """Some rows at one exit."""

    hidden_RE: Tensor  # after the exit's layer
    before_RE: Tensor | None  # after the layer before it, for measures that look back
    exit: Exit
    project: Callable[[Tensor], Tensor]  # the model's final norm and vocabulary projection, to float32 logits
    _logits_RV: Tensor | None = field(default=None, init=False)

    @property
    def logits_RV(self) -> Tensor:
        """What the exit says comes next; computed when first asked for."""
        if self._logits_RV is None:
            self._logits_RV = self.project(self.exit.tuned_lens(self.hidden_RE))
        return self._logits_RV

    def computed(self, row: int) -> Tensor | None:
        """The logits of one row [1, V], if anybody has asked for them."""
        return None if self._logits_RV is None else self._logits_RV[row : row + 1]


class ConfidenceMeasure(Protocol):
    """A row's number depends on that row alone, to the bit."""

    name: ClassVar[str]
    looks_back: ClassVar[bool]  # whether it needs ``before_RE``

    def __call__(self, reading: Reading) -> Tensor:
        """[R], float32, 0 to 1"""
        ...
