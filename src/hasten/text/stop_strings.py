"""``StopStrings``: find stop strings in streamed text and hold back what may still become one.

This is the Aho-Corasick automaton (1975): a state is the longest suffix of the text that is a prefix of a stop string. That suffix
is exactly the text to hold back. It knows neither tokens nor requests.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _State:
    length: int  # of the stop string's prefix that the state stands for
    next: dict[str, _State] = field(default_factory=dict)
    failure: _State | None = None  # the longest proper suffix that is also a state; None for the root
    match: str | None = None  # the longest stop string that ends here


class StopStrings:
    """The stop strings of one completion.

    The stop string that is complete first wins; of several that end at the same character, the longest. So the result does not
    depend on how the text is cut into pieces. ``include``: the stop string stays in the text.
    """

    def __init__(self, stop: tuple[str, ...], include: bool) -> None:
        assert all(stop), "an empty stop string"
        self._include = include
        self._state = self._root = _build_automaton(stop)
        self._held_back = ""
        self._matched: str | None = None

    def restart(self) -> StopStrings:
        """Return the same stop strings for another text. Both share the automaton."""
        other = copy.copy(self)
        other._state, other._held_back, other._matched = self._root, "", None
        return other

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Return the text that may be shown and the stop string that was met, if any. Later text is dropped.

        ``may_stop=False``: a stop string that ends in this text does not count; one that only begins in it still may.
        """
        if self._matched is not None:
            return "", self._matched
        if self._state is self._root and self._root.next.keys().isdisjoint(text):
            return text, None
        text, start = self._held_back + text, len(self._held_back)
        for end, character in enumerate(text[start:], start + 1):
            self._state = self._after(character)
            if may_stop and self._state.match is not None:
                self._matched, self._held_back = self._state.match, ""
                return text[: end if self._include else end - len(self._matched)], self._matched
        num_shown = len(text) - self._state.length
        self._held_back = text[num_shown:]
        return text[:num_shown], None

    def flush(self) -> str:
        """Return the text that was held back; the completion has ended."""
        text, self._held_back, self._state = self._held_back, "", self._root
        return text

    def _after(self, character: str) -> _State:
        state: _State | None = self._state
        while state is not None:
            if character in state.next:
                return state.next[character]
            state = state.failure
        return self._root


def _build_automaton(stop: tuple[str, ...]) -> _State:
    root = _State(0)
    for string in stop:
        state = root
        for character in string:
            state = state.next.setdefault(character, _State(state.length + 1))
        state.match = string
    queue = deque([root])
    while queue:  # by length, so that the failure link of a state is complete before it is used
        state = queue.popleft()
        for character, child in state.next.items():
            failure = state.failure
            while failure is not None and character not in failure.next:
                failure = failure.failure
            child.failure = root if failure is None else failure.next[character]
            child.match = child.match or child.failure.match
            queue.append(child)
    return root
