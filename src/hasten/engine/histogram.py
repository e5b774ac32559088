"""``Histogram``: how many observations fell into each of some fixed buckets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


class Histogram:
    """Counts per bucket, and the sum of all observations.

    Bucket i holds those above ``bounds[i - 1]`` and up to ``bounds[i]``, as Prometheus has it; the last one has no bound.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds`` rise."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count an observation, or several equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def as_dict(self) -> dict[str, Any]:
        """Return plain data.

        ``counts`` has one item more than ``bounds``, and its items are not added up; ``sum`` is that of all values.
        """
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}
