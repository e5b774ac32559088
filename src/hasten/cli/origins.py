"""Text in colours that tell how each token came: guessed and accepted, corrected, a bonus, or after how many layers."""

from __future__ import annotations

import os
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from hasten.core.output import Delta
from hasten.core.result import TokenOrigin

if TYPE_CHECKING:
    from hasten.text.detokenizer import Detokenizer


class Label(NamedTuple):
    """What a token is painted for. Labels are told in their order."""

    rank: int
    name: str
    color: str


ORIGINS = {
    TokenOrigin.DRAFT: Label(0, "guessed and accepted", "32"),
    TokenOrigin.CORRECTION: Label(1, "corrected", "33"),
    TokenOrigin.BONUS: Label(2, "after an accepted guess", "36"),
    TokenOrigin.STEP: Label(3, "not guessed", ""),
}
DEPTH_COLORS = ("35", "34", "36", "32", "33", "31")
_REST = Label(-1, "", "")  # what a detokenizer held back is no token's


class Painter:
    """Of one answer. ``NO_COLOR`` is heeded; the counts at the end are told anyway."""

    def __init__(self, detokenizer: Detokenizer | None) -> None:
        self._detokenizer = detokenizer
        self._counts: Counter[Label] = Counter()
        self._left: deque[tuple[str, Label]] = deque()  # text of tokens that no delta has shown yet
        self._colors = not os.environ.get("NO_COLOR")

    def paint(self, delta: Delta) -> str:
        """The text of the delta. What it holds back, for a stop string or half a character, comes with a later one."""
        labels = [_depth(layers) for layers in delta.exit_layers] or [ORIGINS[origin] for origin in delta.origins]
        self._counts.update(labels)
        for token_id, label in zip(delta.token_ids, labels, strict=True):
            text = self._detokenizer.push(token_id) if self._detokenizer else f"{token_id} "
            self._left.append((text, label))
        if self._detokenizer and delta.finish_reason is not None:
            self._left.append((self._detokenizer.flush(), _REST))
        if self._detokenizer is None:
            parts, self._left = list(self._left), deque()
            return "".join(self._painted(text, label) for text, label in parts)
        return self._take(len(delta.text))

    def legend(self) -> str:
        """``34 guessed and accepted | 3 corrected | 12 after an accepted guess | 1 not guessed``, or how many left where."""
        leave = any(label not in ORIGINS.values() for label in self._counts)
        labels = sorted(self._counts) if leave else ORIGINS.values()
        return " | ".join(self._painted(f"{self._counts[label]} {label.name}", label) for label in labels)

    def _take(self, count: int) -> str:
        parts = []
        while count and self._left:
            text, label = self._left.popleft()
            if len(text) > count:
                self._left.appendleft((text[count:], label))
                text = text[:count]
            count -= len(text)
            parts.append(self._painted(text, label))
        return "".join(parts)

    def _painted(self, text: str, label: Label) -> str:
        color = label.color if self._colors else ""
        return f"\x1b[{color}m{text}\x1b[0m" if color and text else text


def _depth(layers: int) -> Label:
    return Label(layers, f"after {layers} layer{'s' if layers > 1 else ''}", DEPTH_COLORS[layers % len(DEPTH_COLORS)])
