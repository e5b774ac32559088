"""A text and a few tokens more, without a copy of the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload


class ConcatView(Sequence[int]):
    """``text`` as it is now, then ``more``. Good until the text grows."""

    __slots__ = ("_length", "_more", "_text")

    def __init__(self, text: Sequence[int], more: Sequence[int]) -> None:
        self._text, self._more, self._length = text, more, len(text)

    def __len__(self) -> int:
        return self._length + len(self._more)

    def __iter__(self) -> Iterator[int]:
        return chain(self._text, self._more)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            return [*self._text[start:stop], *self._more[max(0, start - self._length) : max(0, stop - self._length)]]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._text[index] if index < self._length else self._more[index - self._length]
