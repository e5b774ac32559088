"""The suffix automaton of a growing text: every run of tokens that occurs in it, in space and time linear in its length.

Blumer et al., 1985 (doi 10.1016/0304-3975(85)90157-4). A state stands for the runs that end at the same places; ``link`` leads
to the longest of its suffixes that also ends elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable


class SuffixAutomaton:
    """``token_ids`` is the text; state 0 is the empty run."""

    __slots__ = ("_last", "_length", "_link", "_next", "_place", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of the longest run of a state
        self._place = [0]  # where its first occurrence ends
        self._last = 0  # the state of the whole text

    def extend(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            self._append(token_id)

    def repeated(self) -> tuple[int, int]:
        """(length, end of its first occurrence) of the longest run at the end of the text that occurs earlier; length 0: none."""
        state = self._link[self._last]
        return (self._length[state], self._place[state]) if state > 0 else (0, 0)

    def match(self, state: int, length: int, token_ids: Iterable[int]) -> tuple[int, int]:
        """The longest run at the end that occurs here, after more tokens: (state, length), from those before them or (0, 0).

        Both mean nothing any more once this text has grown.
        """
        for token_id in token_ids:
            while state and token_id not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            following = self._next[state].get(token_id)
            state, length = (0, 0) if following is None else (following, length + 1)
        return state, length

    def place(self, state: int) -> int:
        """Where the first occurrence of a state's runs ends."""
        return self._place[state]

    def _new(self, following: dict[int, int], link: int, length: int, place: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._place.append(place)
        return len(self._next) - 1

    def _append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        length = len(self.token_ids)
        state = self._last
        new = self._last = self._new({}, 0, length, length)
        while state >= 0 and token_id not in self._next[state]:
            self._next[state][token_id] = new
            state = self._link[state]
        if state < 0:
            return
        target = self._next[state][token_id]
        if self._length[target] == self._length[state] + 1:
            self._link[new] = target
            return
        copy = self._new(dict(self._next[target]), self._link[target], self._length[state] + 1, self._place[target])
        while state >= 0 and self._next[state].get(token_id) == target:
            self._next[state][token_id] = copy
            state = self._link[state]
        self._link[target] = self._link[new] = copy
