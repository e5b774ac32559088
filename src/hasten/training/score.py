"""``Score``: what the loop knows of a validation score."""

from __future__ import annotations

from typing import Any, Protocol, Self, TypeVar, runtime_checkable


class Score(Protocol):
    """A validation score. Scores of batches add up to that of their text."""

    @property
    def mean_loss(self) -> float:
        """The loss per position, by which the loop chooses the best parameters."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return the entries of ``training.json``, among them "loss"."""
        ...

    def describe(self) -> str:
        """Return the figures beside the loss for one line of the log; empty if there are none."""
        ...

    def __add__(self, other: Self) -> Self: ...


@runtime_checkable
class StoppingScore(Protocol):
    """A score that can end the training."""

    @property
    def must_stop(self) -> bool:
        """Whether the parameters have left the range in which training makes sense."""
        ...


AnyScore = TypeVar("AnyScore", bound=Score)
