"""``ByteRun``: the byte tokens (``<0xE4>``) at the end of a text, in vocabularies with byte fallback."""

from __future__ import annotations

from typing import Literal


class ByteRun:
    """It tells which byte completes a character, and which one can be part of none.

    A wrong byte makes the rest of the run wrong.
    """

    __slots__ = ("_is_wrong", "_open_bytes")

    def __init__(self) -> None:
        self._open_bytes = b""  # of a character that is not complete
        self._is_wrong = False

    @property
    def num_open(self) -> int:
        """The number of bytes that wait for the rest of their character."""
        return len(self._open_bytes)

    def push(self, byte: int) -> Literal["open", "complete", "wrong"]:
        """Add a byte; return what became of it and of the open bytes before it."""
        if self._is_wrong:
            return "wrong"
        self._open_bytes += bytes((byte,))
        try:
            self._open_bytes.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return "open"
            self._is_wrong = True
        self._open_bytes = b""
        return "wrong" if self._is_wrong else "complete"


def byte_of(token: str) -> int | None:
    """Return the byte that a token of this name stands for, or None for other names."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None
