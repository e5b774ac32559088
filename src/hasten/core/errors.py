"""The errors that hasten raises for its user. A bug in hasten itself raises ``AssertionError``.

::

    HastenError
    ├── InvalidRequest       a prompt, a sampling setting or a conversation that cannot run
    │   └── PromptTooLong    prompt and output exceed the context or the KV pool
    ├── InvalidOption        an option of the engine, of a command or of a method
    ├── CheckpointError      a model folder that cannot be read, understood or trusted
    │   ├── ModelNotFound
    │   └── UnsupportedModel
    ├── KvFileError          a file of saved KV blocks that cannot be read, or that another engine wrote
    └── CapacityError        the machine lacks the memory

A message is one sentence: what is wrong, the value, the allowed values and the remedy. It is one line of printable characters, and
it has at most ``MAX_MESSAGE`` of them, whatever value a caller or a file gave.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from pathlib import PurePath

MAX_MESSAGE = 2000  # characters
_MAX_PARTS = MAX_MESSAGE - 40  # the rest is for the words and the marks between the four parts
_LINE_BREAKS = re.compile(r"\s*[\n\r]\s*")


class HastenError(Exception):
    """Base of all errors meant for the user; ``str(error)`` is one sentence."""

    def __init__(self, what: str, *, got: object = None, allowed: object = None, remedy: str | None = None) -> None:
        texts = [None if part is None else printable(part) for part in (what, got, allowed, remedy)]
        while (excess := sum(len(text or "") for text in texts) - _MAX_PARTS) > 0:
            longest = max(range(4), key=lambda index: len(texts[index] or ""))
            text = texts[longest] or ""
            texts[longest] = clip(text, max(_MAX_PARTS // 4, len(text) - excess))
        self.what, self.got, self.allowed, self.remedy = texts[0] or "", *texts[1:]
        details = [f"got {self.got}"] if self.got is not None else []
        details += [f"allowed: {self.allowed}"] if self.allowed is not None else []
        message = self.what if not details else f"{self.what}: {'; '.join(details)}"
        super().__init__(f"{message}. {self.remedy}." if self.remedy else f"{message}.")

    def fields(self) -> dict[str, str | None]:
        """Return the message's parts after ``what`` as plain data; another process rebuilds the error."""
        return {"got": self.got, "allowed": self.allowed, "remedy": self.remedy}


class InvalidRequest(HastenError):
    """The request cannot run; other requests are not affected."""


class PromptTooLong(InvalidRequest):
    """The prompt, or prompt plus ``max_tokens``, exceeds the context or the KV pool."""


class InvalidOption(HastenError):
    """An option that does not exist or has a value out of range."""


class CheckpointError(HastenError):
    """A model folder that cannot be read, understood or trusted."""


class ModelNotFound(CheckpointError):
    """No such folder, and no such model in the local cache or on the hub."""


class UnsupportedModel(CheckpointError):
    """A valid checkpoint of a kind that hasten does not support."""


class KvFileError(HastenError):
    """A file of saved KV blocks that cannot be read, or whose numbers are not those of this engine."""


class CapacityError(HastenError):
    """The machine lacks the memory; the message names the needed and the available amount."""


def nearest(name: object, choices: Iterable[str]) -> str:
    """Return the remedy for an unknown name: the closest choice, or all of them."""
    known = sorted(choices)
    close = difflib.get_close_matches(printable(name)[:80], known, n=1)
    return f"Did you mean {close[0]!r}" if close else f"Choose one of {', '.join(known)}"


def printable(part: object) -> str:
    """Return the text of ``part`` in one line of printable characters.

    Line breaks become spaces, and other control characters are escaped. Values that are no texts appear as ``show`` does.
    """
    text = str(part) if isinstance(part, (str, PurePath, Exception)) else show(part)
    text = _LINE_BREAKS.sub(" ", text[: 2 * MAX_MESSAGE])
    return text if text.isprintable() else "".join(map(_escaped, text))


def clip(text: str, length: int) -> str:
    """Return at most ``length`` characters of the text; an ellipsis marks what was cut."""
    return text if len(text) <= length else text[: length - 3] + "..."


def show(value: object, length: int = 80) -> str:
    """Return ``repr(value)``, cut in the middle of long texts, numbers and collections. It never raises."""
    try:
        return clip(_REPR.repr(value), length)
    except Exception:
        return f"<{type(value).__name__}>"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class _Repr(reprlib.Repr):
    """A bounded ``repr`` that costs no more for a large value than for a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 256 else f"an integer of {value.bit_length()} bits"


_REPR = _Repr()
