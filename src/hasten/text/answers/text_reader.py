"""``TextReader``: text that arrives in pieces, for parsers that read it as if it were there.

A parser is a generator that ``yield``s where it needs more text (``Reading``). What it reads depends on the characters alone and
not on the pieces. No character is looked at again once it was taken, and what waits to be taken is at most a marker long, so the
cost is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]  # a parse that waits for text at each ``yield``, and returns a T
Emit = Callable[[str], None]

MAX_WORD = 512  # characters of a name, a number or a header
SPACE = re.compile(r"[ \t\r\n]*")


class MalformedCall(Exception):
    """The text of a call breaks the syntax. The message says how."""


class NotACall(MalformedCall):
    """The text could have been a call, of a syntax without markers, and is none."""


class Markers:
    """Literal texts to look for. None is the start of another."""

    def __init__(self, *literals: str) -> None:
        self.literals = tuple(dict.fromkeys(literals))
        self.pattern = re.compile("|".join(map(re.escape, self.literals)) or r"(?!)")
        self._starts = frozenset(literal[:length] for literal in self.literals for length in range(1, len(literal)))
        self._max_start = max((len(literal) - 1 for literal in self.literals), default=0)

    def num_held(self, text: str, start: int) -> int:
        """Return the length of the longest end of ``text[start:]`` that may become a marker."""
        for length in range(min(self._max_start, len(text) - start), 0, -1):
            if text[len(text) - length :] in self._starts:
                return length
        return 0


class TextReader:
    """The text that arrived and was not taken yet."""

    def __init__(self) -> None:
        self._text, self._at = "", 0
        self.has_ended = False
        self._kept: list[str] | None = None

    @property
    def num_waiting(self) -> int:
        """How many characters arrived and were not taken."""
        return len(self._text) - self._at

    def feed(self, text: str) -> None:
        self._text, self._at = self._text[self._at :] + text, 0

    def end(self) -> None:
        """No more text arrives."""
        self.has_ended = True

    def keep(self, text: str = "") -> None:
        """Keep the text that is taken from here on, after ``text``."""
        self._kept = [text]

    def kept(self) -> str:
        """Return the text that was kept, and keep no more."""
        text, self._kept = "".join(self._kept or ()), None
        return text

    def take(self, length: int) -> str:
        text = self._text[self._at : self._at + length]
        self._at += length
        if self._kept is not None:
            self._kept.append(text)
        return text

    def peek(self) -> Reading[str]:
        """Return the next character; an empty text at the end."""
        while self._at == len(self._text):
            if self.has_ended:
                return ""
            yield
        return self._text[self._at]

    def accept(self, literal: str) -> Reading[bool]:
        """Take a literal if it comes next, and return whether it does."""
        while True:
            ahead = self._text[self._at : self._at + len(literal)]
            if ahead == literal:
                self.take(len(literal))
                return True
            if self.has_ended or not literal.startswith(ahead):
                return False
            yield

    def require(self, literal: str) -> Reading[None]:
        """Take a literal. Raises ``MalformedCall`` if it does not come next."""
        if not (yield from self.accept(literal)):
            raise MalformedCall(f"it lacks {literal!r}" + (", the text ends" if self.has_ended and not self.num_waiting else ""))

    def run(self, characters: re.Pattern[str], emit: Emit) -> Reading[None]:
        """Take characters as long as they belong to a class. ``characters`` is ``[...]*``."""
        while True:
            found = characters.match(self._text, self._at)
            length = 0 if found is None else found.end() - self._at
            if length:
                emit(self.take(length))
            if self._at < len(self._text) or self.has_ended:
                return
            yield

    def space(self) -> Reading[str]:
        """Take and return white space."""
        taken: list[str] = []
        yield from self.run(SPACE, taken.append)
        return "".join(taken)

    def until(self, markers: Markers, emit: Emit) -> Reading[str | None]:
        """Take the text up to the first marker, and the marker; return it, or None at the end."""
        while True:
            found = markers.pattern.search(self._text, self._at)
            if found is not None:
                if found.start() > self._at:
                    emit(self.take(found.start() - self._at))
                return self.take(len(found.group()))
            held = 0 if self.has_ended else markers.num_held(self._text, self._at)
            if self.num_waiting > held:
                emit(self.take(self.num_waiting - held))
            if self.has_ended:
                return None
            yield

    def word(self, characters: re.Pattern[str], what: str) -> Reading[str]:
        """Take and return characters of a class. Raises ``MalformedCall`` if there are more than ``MAX_WORD``."""
        short = _ShortText(what)
        yield from self.run(characters, short.add)
        return short.text

    def word_until(self, markers: Markers, what: str) -> Reading[tuple[str, str]]:
        """Return a text and the marker after it.

        Raises ``MalformedCall`` if it is longer than ``MAX_WORD``, or not ended.
        """
        short = _ShortText(what)
        marker = yield from self.until(markers, short.add)
        if marker is None:
            raise MalformedCall(f"the text ends in {what}")
        return short.text, marker


class _ShortText:
    def __init__(self, what: str) -> None:
        self.text, self._what = "", what

    def add(self, text: str) -> None:
        if len(self.text) + len(text) > MAX_WORD:
            raise MalformedCall(f"{self._what} has more than {MAX_WORD} characters")
        self.text += text
