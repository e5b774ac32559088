"""Tokens coloured by their origin (accepted draft, correction, bonus, plain step) or by their exit layer."""

from __future__ import annotations

import os
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from hasten.core.output import Delta
from hasten.core.result import TokenOrigin

if TYPE_CHECKING:
    from hasten.text.detokenizer import Detokenizer


class Label(NamedTuple):
    """The reason for a token's colour. The legend is ordered by ``rank``."""

    rank: int
    name: str
    color: str  # ANSI code; empty: the terminal's own colour


ORIGINS = {
    TokenOrigin.DRAFT: Label(0, "accepted", "32"),
    TokenOrigin.CORRECTION: Label(1, "corrected", "33"),
    TokenOrigin.BONUS: Label(2, "bonus", "36"),
    TokenOrigin.STEP: Label(3, "not drafted", ""),
}
LAYER_COLORS = ("35", "34", "36", "32", "33", "31")
_FLUSHED = Label(-1, "", "")  # text that the detokenizer held back until the end


class TokenPainter:
    """Colours the text of one output and counts its tokens by label. ``NO_COLOR`` turns colours off."""

    def __init__(self, detokenizer: Detokenizer | None) -> None:
        self._detokenizer = detokenizer
        self._counts: Counter[Label] = Counter()
        self._pending: deque[tuple[str, Label]] = deque()  # text of tokens that no delta has shown yet
        self._colors = not os.environ.get("NO_COLOR")

    def paint(self, delta: Delta) -> str:
        """Return the delta's text in colour, or its token ids without a detokenizer."""
        labels = [_layer_label(layer) for layer in delta.exit_layers] or [ORIGINS[origin] for origin in delta.origins]
        self._counts.update(labels)
        for token_id, label in zip(delta.token_ids, labels, strict=True):
            text = self._detokenizer.push(token_id) if self._detokenizer else f"{token_id} "
            self._pending.append((text, label))
        if self._detokenizer and delta.finish_reason is not None:
            self._pending.append((self._detokenizer.flush(), _FLUSHED))
        # The delta holds text back for a stop string or an incomplete character; a later delta shows it.
        return self._pop(len(delta.text) if self._detokenizer else sum(len(text) for text, _ in self._pending))

    def legend(self) -> str:
        """Return ``34 accepted | 3 corrected | 12 bonus | 1 not drafted``, or the number of tokens per exit layer."""
        early_exit = any(label not in ORIGINS.values() for label in self._counts)
        labels = sorted(self._counts) if early_exit else ORIGINS.values()
        return " | ".join(self._colored(f"{self._counts[label]} {label.name}", label) for label in labels)

    def _pop(self, num_characters: int) -> str:
        parts = []
        while num_characters and self._pending:
            text, label = self._pending.popleft()
            if len(text) > num_characters:
                self._pending.appendleft((text[num_characters:], label))
                text = text[:num_characters]
            num_characters -= len(text)
            parts.append(self._colored(text, label))
        return "".join(parts)

    def _colored(self, text: str, label: Label) -> str:
        return f"\x1b[{label.color}m{text}\x1b[0m" if self._colors and label.color and text else text


def _layer_label(layer: int) -> Label:
    return Label(layer, f"after {layer} layer{'s' if layer > 1 else ''}", LAYER_COLORS[layer % len(LAYER_COLORS)])
