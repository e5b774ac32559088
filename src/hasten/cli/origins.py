"""Text in colours that tell how each token came: guessed and accepted, corrected, a bonus, or the long way."""

from __future__ import annotations

import os
from collections import Counter, deque
from typing import TYPE_CHECKING

from hasten.core.output import Delta
from hasten.core.result import TokenOrigin

if TYPE_CHECKING:
    from hasten.engine.detokenizer import Detokenizer

COLORS = {TokenOrigin.DRAFT: "32", TokenOrigin.CORRECTION: "33", TokenOrigin.BONUS: "36", TokenOrigin.STEP: ""}
NAMES = {
    TokenOrigin.DRAFT: "guessed and accepted",
    TokenOrigin.CORRECTION: "corrected",
    TokenOrigin.BONUS: "after an accepted guess",
    TokenOrigin.STEP: "not guessed",
}


class Painter:
    """Of one answer. ``NO_COLOR`` is heeded; the counts at the end are told anyway."""

    def __init__(self, detokenizer: Detokenizer | None) -> None:
        self._detokenizer = detokenizer
        self._counts: Counter[TokenOrigin] = Counter()
        self._left: deque[tuple[str, TokenOrigin]] = deque()  # text of tokens that no delta has shown yet
        self._colors = not os.environ.get("NO_COLOR")

    def paint(self, delta: Delta) -> str:
        """The text of the delta. What it holds back, for a stop string or half a character, comes with a later one."""
        self._counts.update(delta.origins)
        for token_id, origin in zip(delta.token_ids, delta.origins, strict=True):
            text = self._detokenizer.push(token_id) if self._detokenizer else f"{token_id} "
            self._left.append((text, origin))
        if self._detokenizer and delta.finish_reason is not None:
            self._left.append((self._detokenizer.flush(), TokenOrigin.STEP))
        if self._detokenizer is None:
            parts, self._left = list(self._left), deque()
            return "".join(self._painted(text, origin) for text, origin in parts)
        return self._take(len(delta.text))

    def legend(self) -> str:
        """``34 guessed and accepted | 3 corrected | 12 after an accepted guess | 1 not guessed``."""
        return " | ".join(self._painted(f"{self._counts[origin]} {NAMES[origin]}", origin) for origin in COLORS)

    def _take(self, count: int) -> str:
        parts = []
        while count and self._left:
            text, origin = self._left.popleft()
            if len(text) > count:
                self._left.appendleft((text[count:], origin))
                text = text[:count]
            count -= len(text)
            parts.append(self._painted(text, origin))
        return "".join(parts)

    def _painted(self, text: str, origin: TokenOrigin) -> str:
        color = COLORS[origin] if self._colors else ""
        return f"\x1b[{color}m{text}\x1b[0m" if color and text else text
