"""``SelectOptions``: how many examples are chosen, and by what. This module imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.engine_options import Seed, Threads
from hasten.core.errors import InvalidOption
from hasten.core.field_type import OneOf, Range

LOSS_GAP, IFD, DIVERSITY, RANDOM = "loss-gap", "ifd", "diversity", "random"
METHODS = (f"{LOSS_GAP}+{DIVERSITY}", f"{IFD}+{DIVERSITY}", LOSS_GAP, IFD, DIVERSITY, RANDOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectOptions:
    """Which examples are chosen. Every method drops those of wrong lengths and near-duplicates first.

    - loss-gap: where the student's loss per output token exceeds the teacher's by most.
    - ifd: those with the highest instruction-following difficulty below 1 (Li et al., 2024, "From Quantity to Quality").
    - diversity: those that cover the embeddings of all (k-center greedy, Sener and Savarese, 2018).
    - loss-gap+diversity, ifd+diversity: the diverse ones of the best, as in DEITA (Liu et al., 2024).
    - random: a random order, to compare with.

    Raises ``InvalidOption`` for values out of range.
    """

    count: Annotated[int, Range(1, 10**7)] = 1000  # examples
    by: Annotated[str, OneOf(METHODS)] = METHODS[0]
    max_similarity: Annotated[float, Range(0.3, 1)] = 0.8  # Jaccard similarity from which two examples are near-duplicates
    min_words: Annotated[int, Range(0, 10**6)] = 1  # of an output; a punctuation mark counts as a word
    max_words: Annotated[int, Range(1, 10**9)] | None = None  # of input and output; None: no limit
    seq_len: Annotated[int, Range(32, 2**20)] = 512  # tokens of the longest example that the models read
    pool: Annotated[int, Range(1, 1000)] = 4  # diverse examples are chosen from the best ``pool`` · ``count``
    batch: Annotated[int, Range(1, 2**16)] = 8  # examples that a model reads at a time
    seed: Seed = 0  # of the random order
    threads: Threads | None = None  # None: one per core that this process may use

    def __post_init__(self) -> None:
        check_fields(self, "option of the selection", InvalidOption, self._conflicts)

    @property
    def score(self) -> str | None:
        """The criterion that ranks examples; None: they are not ranked."""
        return next((name for name in (LOSS_GAP, IFD) if name in self.by), None)

    @property
    def is_diverse(self) -> bool:
        return DIVERSITY in self.by

    @property
    def needs_student(self) -> bool:
        return self.by != RANDOM

    @property
    def needs_teacher(self) -> bool:
        return self.score == LOSS_GAP

    def _conflicts(self) -> Iterator[Fault]:
        if self.max_words is not None and self.max_words < self.min_words:
            yield Fault("max_words", f"from min_words={self.min_words}", "Give a larger one")
