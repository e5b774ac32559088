"""Tokens coloured by origin (accepted draft, correction, bonus, plain step) or by exit layer."""

from __future__ import annotations

import os
from collections import Counter, deque
from typing import TYPE_CHECKING

from hasten.core.output import Delta
from hasten.core.result import TokenOrigin

if TYPE_CHECKING:
    from hasten.text.detokenizer import Detokenizer

# origin -> (name in the legend, ANSI colour), in the order of the legend
ORIGINS = {
    TokenOrigin.DRAFT: ("accepted", "32"),
    TokenOrigin.CORRECTION: ("corrected", "33"),
    TokenOrigin.BONUS: ("bonus", "36"),
    TokenOrigin.STEP: ("not drafted", ""),
}
LAYER_COLORS = ("35", "34", "36", "32", "33", "31")


class TokenPainter:
    """Colours the text of one output and counts its tokens. ``NO_COLOR`` turns colours off."""

    def __init__(self, detokenizer: Detokenizer | None) -> None:
        self._detokenizer = detokenizer
        self._num_by_origin: Counter[TokenOrigin] = Counter()
        self._num_by_layer: Counter[int] = Counter()
        self._pending: deque[tuple[str, str]] = deque()  # (text, colour) of tokens that no delta has shown yet
        self._colors = not os.environ.get("NO_COLOR")

    def paint(self, delta: Delta) -> str:
        """Return the delta's text in colour, or its token ids without a detokenizer."""
        if delta.exit_layers:
            self._num_by_layer.update(delta.exit_layers)
            colors = [_layer_color(layer) for layer in delta.exit_layers]
        else:
            self._num_by_origin.update(delta.origins)
            colors = [ORIGINS[origin][1] for origin in delta.origins]
        for token_id, color in zip(delta.token_ids, colors, strict=True):
            self._pending.append((self._detokenizer.push(token_id) if self._detokenizer else f"{token_id} ", color))
        if self._detokenizer is None:
            return self._pop(sum(len(text) for text, _ in self._pending))
        if delta.finish_reason is not None:
            self._pending.append((self._detokenizer.flush(), ""))
        # The delta holds text back for a stop string or an incomplete character; a later delta shows it.
        return self._pop(len(delta.text))

    def legend(self) -> str:
        """Return ``34 accepted | 3 corrected | 12 bonus | 1 not drafted``, or the tokens per exit layer."""
        rows = [(self._num_by_origin[origin], name, color) for origin, (name, color) in ORIGINS.items()]
        if self._num_by_layer:
            rows = [
                (number, f"after {layer} layer{'s' if layer > 1 else ''}", _layer_color(layer))
                for layer, number in sorted(self._num_by_layer.items())
            ]
        return " | ".join(self._colored(f"{number} {name}", color) for number, name, color in rows)

    def _pop(self, num_characters: int) -> str:
        parts = []
        while num_characters and self._pending:
            text, color = self._pending.popleft()
            if len(text) > num_characters:
                self._pending.appendleft((text[num_characters:], color))
                text = text[:num_characters]
            num_characters -= len(text)
            parts.append(self._colored(text, color))
        return "".join(parts)

    def _colored(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._colors and color and text else text


def _layer_color(layer: int) -> str:
    return LAYER_COLORS[layer % len(LAYER_COLORS)]
