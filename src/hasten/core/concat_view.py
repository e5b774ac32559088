"""``ConcatView``: two token sequences read as one, without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload


class ConcatView(Sequence[int]):
    """``first`` at its present length, then ``second``. The view is valid until ``first`` grows."""

    __slots__ = ("_first", "_length", "_second")

    def __init__(self, first: Sequence[int], second: Sequence[int]) -> None:
        self._first, self._second, self._length = first, second, len(first)

    def __len__(self) -> int:
        return self._length + len(self._second)

    def __iter__(self) -> Iterator[int]:
        return chain(self._first, self._second)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            return [*self._first[start:stop], *self._second[max(0, start - self._length) : max(0, stop - self._length)]]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._first[index] if index < self._length else self._second[index - self._length]
