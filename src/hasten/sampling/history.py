"""Which tokens occur in a sequence and how often, kept up as it grows: a step costs what is new, not the whole length."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class TokenCounts:
    """Distinct tokens in the order of their first occurrence, as integers of 64 bits that other libraries read without a loop."""

    __slots__ = ("_place", "counts", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array("q")
        self.counts = array("q")  # of each of ``token_ids``
        self._place: dict[int, int] = {}

    def add(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            place = self._place.setdefault(token_id, len(self.token_ids))
            if place == len(self.token_ids):
                self.token_ids.append(token_id)
                self.counts.append(1)
            else:
                self.counts[place] += 1


class TokenHistory:
    """Of one sequence, whose tokens are only ever added to: preemption computes them again, it does not take them back."""

    __slots__ = ("_length", "_num_prompt_tokens", "answer", "whole")

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._length = 0
        self.whole = TokenCounts()  # prompt and answer
        self.answer = TokenCounts()

    def follow(self, token_ids: Sequence[int]) -> TokenHistory:
        """Take in what the sequence has gained since the last call. Returns itself."""
        assert len(token_ids) >= self._length, "a sequence has lost tokens"
        self.whole.add(token_ids[self._length :])
        self.answer.add(token_ids[max(self._length, self._num_prompt_tokens) :])
        self._length = len(token_ids)
        return self
