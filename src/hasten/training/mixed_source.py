"""``MixedSource``: batches of one source, and a share of batches of another, such as replayed text.

The seed and the step decide where a batch comes from, so a resumed run reads the same batches. Each source is asked for its own
steps 0, 1, 2, ... without a gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hasten.training.corpus import Batch, BatchSource, derived_seed

_UNITS = 1 << 30  # shares are whole numbers of these parts, so that counts are exact


@dataclass(frozen=True, slots=True)
class MixedSource:
    main: BatchSource
    other: BatchSource
    share: float  # of the batches that are of ``other``; 0 to 1

    @property
    def summary(self) -> str:
        return f"{self.main.summary}; {self.share:.0%} of batches: {self.other.summary}"

    def batch(self, step: int, size: int, seq_len: int, seed: int) -> Batch:
        before = self._num_other(step, seed)
        if self._num_other(step + 1, seed) > before:
            return self.other.batch(before, size, seq_len, derived_seed(seed, "other source", 0))
        return self.main.batch(step - before, size, seq_len, seed)

    def validation_batches(self, size: int, seq_len: int, limit: int) -> Iterator[Batch]:
        """Yield those of the main source."""
        return self.main.validation_batches(size, seq_len, limit)

    def _num_other(self, step: int, seed: int) -> int:
        """Return how many batches before ``step`` are of the other source.

        They are evenly spaced, from an offset by the seed.
        """
        offset = derived_seed(seed, "mixture", 0) % _UNITS
        return (step * round(self.share * _UNITS) + offset) // _UNITS
