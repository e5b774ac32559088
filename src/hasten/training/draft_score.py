"""``DraftScore``: what guesses were worth on held-out text. Plain counts, which add up over batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftScore:
    """Depth d (from 0) is the guess of a chain's token d. A position counts if every depth of it can be checked."""

    loss: float  # summed over positions
    num_positions: int
    right: tuple[int, ...]  # [depth] right, and so were all earlier ones
    seen: tuple[int, ...]  # [depth] all earlier ones were right
    ranks: tuple[tuple[int, ...], ...]  # [depth][rank] the true token was this guess of the depth, whatever the earlier ones were
    # Not empty: no chain. Depth d is the exit after ``exits[d]`` layers, and right or wrong whatever the others are.
    exits: tuple[int, ...] = ()

    @classmethod
    def nothing(cls) -> DraftScore:
        return cls(loss=0.0, num_positions=0, right=(), seen=(), ranks=())

    def __add__(self, other: DraftScore) -> DraftScore:
        return DraftScore(
            loss=self.loss + other.loss,
            num_positions=self.num_positions + other.num_positions,
            right=_sum(self.right, other.right),
            seen=_sum(self.seen, other.seen),
            ranks=tuple(_sum(a, b) for a, b in zip_longest(self.ranks, other.ranks, fillvalue=())),
            exits=self.exits or other.exits,
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.num_positions)

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Of each depth: how often it is right where all earlier ones were. 0 where that never happened."""
        return tuple(right / seen if seen else 0.0 for right, seen in zip(self.right, self.seen, strict=True))

    @property
    def accepted_length(self) -> float:
        """Guesses accepted per chain, on average."""
        return sum(self.right) / max(1, self.num_positions)

    @property
    def accuracies(self) -> tuple[tuple[float, ...], ...]:
        """[depth][rank] how often the true token is that guess: what a tree of guesses is chosen from."""
        count = max(1, self.num_positions)
        return tuple(tuple(hits / count for hits in depth) for depth in self.ranks)

    def as_dict(self) -> dict[str, Any]:
        known: dict[str, Any] = {"loss": self.mean_loss, "positions": self.num_positions}
        if self.exits:
            return {**known, "exits": list(self.exits), "agreement": list(self.acceptance)}
        return {**known, "acceptance": list(self.acceptance), "accepted_length": self.accepted_length}


def _sum(ours: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(ours, theirs, fillvalue=0))
