"""Guesses that the text goes on as it did before: what followed the last few tokens where they occurred the last time.

Prompt lookup decoding (Saxena, 2023; also arXiv 2304.04487). It costs next to nothing and pays where the answer repeats the prompt
or itself: edits, quotations, code. Longer matches are tried first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.core.draft import Draft
from hasten.speculative.drafters.base import NO_TARGET_OUTPUT, DraftRequest, TargetOutput
from hasten.speculative.drafters.continuation import continuation

Ids = tuple[int, ...]


@dataclass(slots=True)
class NgramIndex:
    """Where each run of ``size`` tokens of a growing text ended the last time, those at its very end left out."""

    size: int
    ends: dict[Ids, int] = field(default_factory=dict)
    num_seen: int = 0

    def follow(self, token_ids: Sequence[int]) -> None:
        """Take in the runs that have got a successor since the last call."""
        for end in range(max(self.size, self.num_seen), len(token_ids)):
            self.ends[tuple(token_ids[end - self.size : end])] = end
        self.num_seen = max(self.num_seen, len(token_ids))

    def find(self, token_ids: Sequence[int]) -> int | None:
        """Where what follows the last run began to be written before."""
        return self.ends.get(tuple(token_ids[len(token_ids) - self.size :]))


@dataclass(slots=True)
class PromptLookup:
    num_tokens: int = 8  # of a guess, at most
    factor: int = 2  # tokens guessed per token of the match: the longer the past is alike, the further is the future
    longest: int = 4  # tokens of a match, at most and at least
    shortest: int = 2
    _known: dict[int, tuple[NgramIndex, ...]] = field(default_factory=dict, init=False)

    def propose(self, lines: Sequence[DraftRequest], seen: TargetOutput = NO_TARGET_OUTPUT) -> list[Draft]:
        sizes = range(self.longest, self.shortest - 1, -1)
        self._known = {
            line.sequence_id: self._known.get(line.sequence_id) or tuple(NgramIndex(size) for size in sizes) for line in lines
        }
        return [Draft.chain(self._guess(line.token_ids, self._known[line.sequence_id])) for line in lines]

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    def _guess(self, token_ids: Sequence[int], known: tuple[NgramIndex, ...]) -> Ids:
        for occurrences in known:
            occurrences.follow(token_ids)
        for occurrences in known:
            begin = occurrences.find(token_ids)
            if begin is not None:
                return continuation(token_ids, begin, min(self.num_tokens, self.factor * occurrences.size))
        return ()
