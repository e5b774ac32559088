"""``TextField``: content or reasoning, without the white space beside markup."""

from __future__ import annotations

_SPACE = " \t\r\n"


class TextField:
    """Text in pieces, with markup between some of them.

    White space after markup is left out, and so is that before markup, unless more text follows: then it stands between the two,
    or a line break if there is none. ``is_stripped``: as if the text began and ended with markup.
    """

    def __init__(self, *, is_stripped: bool) -> None:
        self._is_stripped = self._is_after_markup = is_stripped
        self._pending: list[str] = []  # white space that more text may follow
        self._parts: list[str] = []
        self._new: list[str] = []

    @property
    def text(self) -> str:
        """All the text so far."""
        return "".join(self._parts)

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing but white space."""
        return not self._parts

    def add(self, text: str) -> None:
        if self._is_after_markup:
            text = text.lstrip(_SPACE)
            if not text:
                return
            if self.is_empty:
                self._pending.clear()
            elif not self._pending:
                self._pending.append("\n")
            self._is_after_markup = False
        words = text.rstrip(_SPACE)
        if words:
            self._write("".join(self._pending) + words)
            self._pending.clear()
        if len(words) < len(text):
            self._pending.append(text[len(words) :])

    def mark(self) -> None:
        """Markup stands here."""
        self._is_after_markup = True

    def finish(self) -> None:
        """The text ends here."""
        if not self._is_after_markup and not self._is_stripped and self._pending:
            self._write("".join(self._pending))
        self._pending.clear()

    def take_new(self) -> str:
        """Return the text that was added since the last call."""
        text = "".join(self._new)
        self._new.clear()
        return text

    def _write(self, text: str) -> None:
        self._parts.append(text)
        self._new.append(text)
