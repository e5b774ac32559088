"""Prompt lookup: proposes what followed an earlier occurrence of the last few tokens.

Prompt lookup decoding (Saxena, 2023; also arXiv 2304.04487), vLLM's ngram method. It costs next to nothing and pays where output
repeats the prompt or itself: edits, quotations, code. Longer matches are tried first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.core.draft import Draft
from hasten.speculative.drafters.base import MAX_INDEXED_TOKENS, NO_TARGET_OUTPUT, DraftRequest, TargetOutput
from hasten.speculative.drafters.continuation import continuation


@dataclass(slots=True)
class NgramIndex:
    """The last occurrence of each n-gram of a growing sequence, without the one at its very end."""

    size: int
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> position after it
    num_indexed: int = 0
    begin: int = 0  # position of the first token that is indexed

    def update(self, token_ids: Sequence[int]) -> None:
        """Add the n-grams that have got a successor since the last call."""
        for end in range(max(self.begin + self.size, self.num_indexed), len(token_ids)):
            self.ends[tuple(token_ids[end - self.size : end])] = end
        self.num_indexed = max(self.num_indexed, len(token_ids))

    def restart(self, position: int) -> None:
        """Forget all n-grams that end before ``position``."""
        self.ends = {}
        self.num_indexed = self.begin = position

    def find(self, token_ids: Sequence[int]) -> int | None:
        """Return the position after an earlier occurrence of the last n-gram."""
        return self.ends.get(tuple(token_ids[len(token_ids) - self.size :]))


@dataclass(slots=True)
class PromptLookup:
    num_tokens: int = 8  # of a draft, at most
    tokens_per_match: int = 2  # draft tokens per matched token: longer matches predict further
    max_match: int = 4  # tokens of a match
    min_match: int = 2
    max_tokens: int = MAX_INDEXED_TOKENS  # indexed of all sequences together; of longer ones only the newest tokens are
    _indices: dict[int, tuple[NgramIndex, ...]] = field(default_factory=dict, init=False)  # by sequence id, longest n-gram first

    @property
    def aux_layer_indices(self) -> tuple[int, ...]:
        return ()

    def propose(self, requests: Sequence[DraftRequest], output: TargetOutput = NO_TARGET_OUTPUT) -> list[Draft]:
        sizes = range(self.max_match, self.min_match - 1, -1)
        known = self._indices
        self._indices = {r.sequence_id: known.get(r.sequence_id) or tuple(map(NgramIndex, sizes)) for r in requests}
        limit = self.max_tokens // max(1, len(requests))
        return [Draft.chain(self._lookup(r.token_ids, self._indices[r.sequence_id], limit)) for r in requests]

    def _lookup(self, token_ids: Sequence[int], indices: tuple[NgramIndex, ...], limit: int) -> tuple[int, ...]:
        for index in indices:
            if len(token_ids) - index.begin > limit:
                index.restart(len(token_ids) - limit // 2)
            index.update(token_ids)
        for index in indices:
            start = index.find(token_ids)
            if start is not None:
                return continuation(token_ids, start, min(self.num_tokens, self.tokens_per_match * index.size))
        return ()
