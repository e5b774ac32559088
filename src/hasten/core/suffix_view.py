"""``SuffixView``: the end of a token sequence, without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import overload


class SuffixView(Sequence[int]):
    """``tokens`` from index ``begin`` on. The view grows with ``tokens``, which has at least ``begin``."""

    __slots__ = ("_begin", "_tokens")

    def __init__(self, tokens: Sequence[int], begin: int) -> None:
        self._tokens, self._begin = tokens, begin

    def __len__(self) -> int:
        return len(self._tokens) - self._begin

    def __iter__(self) -> Iterator[int]:
        return islice(self._tokens, self._begin, None)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            return list(self._tokens[self._begin + start : self._begin + max(start, stop)])
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._tokens[self._begin + index]
