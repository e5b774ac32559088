"""The suffix automaton of a growing sequence: all of its substrings, in linear time and space.

Blumer et al., 1985 (doi 10.1016/0304-3975(85)90157-4). A state stands for the substrings that end at the same positions. Its link
leads to the longest of their suffixes that also ends elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable


class SuffixAutomaton:
    """``token_ids`` is the sequence; state 0 is the empty substring."""

    __slots__ = ("_end", "_last", "_length", "_link", "_next", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of the longest substring of a state
        self._end = [0]  # position after its first occurrence
        self._last = 0  # the state of the whole sequence

    def extend(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            self._append(token_id)

    def longest_repeated_suffix(self) -> tuple[int, int]:
        """Return length and first end of the longest suffix that occurs earlier; length 0: none."""
        state = self._link[self._last]
        return (self._length[state], self._end[state]) if state > 0 else (0, 0)

    def match(self, state: int, length: int, token_ids: Iterable[int]) -> tuple[int, int]:
        """Return (state, length) of the longest suffix of another sequence that occurs here.

        ``token_ids`` are its new tokens; ``state`` and ``length`` those before them, or (0, 0). Results expire when this automaton
        grows.
        """
        for token_id in token_ids:
            while state and token_id not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            target = self._next[state].get(token_id)
            state, length = (0, 0) if target is None else (target, length + 1)
        return state, length

    def first_end(self, state: int) -> int:
        """Return the position after the first occurrence of a state's substrings."""
        return self._end[state]

    def _add_state(self, transitions: dict[int, int], link: int, length: int, end: int) -> int:
        self._next.append(transitions)
        self._link.append(link)
        self._length.append(length)
        self._end.append(end)
        return len(self._next) - 1

    def _append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        length = len(self.token_ids)
        state = self._last
        new = self._last = self._add_state({}, 0, length, length)
        while state >= 0 and token_id not in self._next[state]:
            self._next[state][token_id] = new
            state = self._link[state]
        if state < 0:
            return
        target = self._next[state][token_id]
        if self._length[target] == self._length[state] + 1:
            self._link[new] = target
            return
        clone = self._add_state(dict(self._next[target]), self._link[target], self._length[state] + 1, self._end[target])
        while state >= 0 and self._next[state].get(token_id) == target:
            self._next[state][token_id] = clone
            state = self._link[state]
        self._link[target] = self._link[new] = clone
