"""``Candidates``: the records that are still to choose from, and what is known about each.

Shape suffixes: N records · E size of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.compress.distill.selection.options import SelectOptions
from hasten.compress.distill.selection.pool import Record
from hasten.compress.quantize.quantization_run import Progress, ShouldStop, Stopped


@dataclass(slots=True)
class Candidates:
    """Criteria drop and order them."""

    records: list[Record]
    options: SelectOptions
    should_stop: ShouldStop
    progress: Progress | None
    dropped: dict[str, int] = field(default_factory=dict)
    scores_N: Tensor | None = None
    embeddings_NE: Tensor | None = None

    def keep(self, indices: Sequence[int], reason: str) -> None:
        """Keep these records, in this order."""
        self.dropped[reason] = self.dropped.get(reason, 0) + len(self.records) - len(indices)
        self.records = [self.records[index] for index in indices]
        chosen = torch.tensor(list(indices), dtype=torch.int64, device="cpu")
        self.scores_N = None if self.scores_N is None else self.scores_N[chosen]
        self.embeddings_NE = None if self.embeddings_NE is None else self.embeddings_NE[chosen]

    def counter(self, total: int) -> Callable[..., None]:
        """Return a function that counts steps of one criterion. It raises ``Stopped``."""
        done = 0

        def count(steps: int = 1) -> None:
            nonlocal done
            done += steps
            if self.progress is not None:
                self.progress(done, total)
            if self.should_stop():
                raise Stopped

        return count
