"""Stop strings in text that comes in pieces: what may still become one is held back, everything else passes at once.

The automaton of Aho and Corasick (1975): a state is the longest end of the text that begins a stop string, and that is exactly
the text to hold back. It knows no tokens and no request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _State:
    depth: int  # characters of a stop string that it stands for
    next: dict[str, _State] = field(default_factory=dict)
    fallback: _State | None = None  # the longest shorter end that begins a stop string; None for the root
    stop: str | None = None  # the longest stop string that ends here


class StopStrings:
    """Watches the text of one answer.

    The first stop string to be complete wins; of several that are complete with the same character, the longest, which begins
    first. So the result is the same however the text is cut into pieces, and an answer ends at the first character it can.
    ``include``: the stop string stays in the text.
    """

    def __init__(self, stop: tuple[str, ...], include: bool) -> None:
        assert all(stop), "an empty stop string"
        self._include = include
        self._state = self._root = _automaton(stop)
        self._first = frozenset(string[0] for string in stop)
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """(the text that may be shown, the stop string that was met). What follows a stop string is dropped, now and later.

        ``armed=False``: a stop string that ends in this text does not count; one that only begins in it still may.
        """
        if not self._root.next:
            return text, None
        if self._matched is not None:
            return "", self._matched
        if self._state is self._root and self._first.isdisjoint(text):
            return text, None
        text, begin = self._held + text, len(self._held)
        for place in range(begin, len(text)):
            self._state = self._after(text[place])
            if armed and self._state.stop is not None:
                self._matched, self._held = self._state.stop, ""
                end = place + 1
                return text[: end if self._include else end - len(self._matched)], self._matched
        shown = len(text) - self._state.depth
        self._held = text[shown:]
        return text[:shown], None

    def flush(self) -> str:
        """The answer is over: returns what was held back."""
        held, self._held, self._state = self._held, "", self._root
        return held

    def _after(self, character: str) -> _State:
        state: _State | None = self._state
        while state is not None:
            if character in state.next:
                return state.next[character]
            state = state.fallback
        return self._root


def _automaton(stop: tuple[str, ...]) -> _State:
    root = _State(0)
    for string in stop:
        state = root
        for character in string:
            state = state.next.setdefault(character, _State(state.depth + 1))
        state.stop = string
    queue = deque([root])
    while queue:  # by depth, so that a fallback is complete before it is used
        state = queue.popleft()
        for character, child in state.next.items():
            fallback = state.fallback
            while fallback is not None and character not in fallback.next:
                fallback = fallback.fallback
            child.fallback = root if fallback is None else fallback.next[character]
            child.stop = child.stop or child.fallback.stop
            queue.append(child)
    return root
