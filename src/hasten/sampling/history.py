"""Token counts of a sequence, updated as it grows: a step costs its new tokens, not the full length."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence


class TokenCounts:
    """Distinct tokens by first occurrence, and their counts; numpy reads these 64-bit arrays directly."""

    __slots__ = ("_positions", "counts", "token_ids")

    def __init__(self) -> None:
        self.token_ids = array("q")
        self.counts = array("q")  # counts[i] belongs to token_ids[i]
        self._positions: dict[int, int] = {}

    def add(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            position = self._positions.setdefault(token_id, len(self.token_ids))
            if position == len(self.token_ids):
                self.token_ids.append(token_id)
                self.counts.append(1)
            else:
                self.counts[position] += 1


class TokenHistory:
    """Token counts of one sequence, which only grows: preemption recomputes tokens and removes none."""

    __slots__ = ("_length", "_num_prompt_tokens", "all_tokens", "output_tokens")

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._length = 0
        self.all_tokens = TokenCounts()  # prompt and output
        self.output_tokens = TokenCounts()

    def update(self, token_ids: Sequence[int]) -> TokenHistory:
        """Count the new tokens of a sequence, which is given in full; returns this object."""
        assert len(token_ids) >= self._length, "a sequence has lost tokens"
        self.all_tokens.add(token_ids[self._length :])
        self.output_tokens.add(token_ids[max(self._length, self._num_prompt_tokens) :])
        self._length = len(token_ids)
        return self
