"""``ValueReader``: read the numbers, strings and metadata values of a GGUF header.

It does not know which keys mean what. Every length is compared with the bytes that are left before anything is allocated.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Any, Protocol

import numpy as np

MAX_KEY = 65_535  # bytes of a metadata key, by the specification
MAX_ITEMS = 2**24  # of all arrays of a file; vocabularies have up to 2**19 tokens
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9

# By type number: the little-endian NumPy dtype of a metadata value.
_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32, _U64 = Struct("<I"), Struct("<Q")


class GgufError(Exception):
    """The file is not a complete GGUF file; the message says why.

    ``GgufFile`` turns it into a ``CheckpointError``.
    """


class Buffer(Protocol):
    """Bytes, or a memory-mapped file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> bytes: ...


class ValueReader:
    """Reads values one after the other from ``position`` on. Every method raises ``GgufError``."""

    def __init__(self, buffer: Buffer, position: int = 0) -> None:
        self.position = position
        self._buffer, self._num_items = buffer, 0

    @property
    def remaining(self) -> int:
        """The number of bytes behind the position."""
        return len(self._buffer) - self.position

    def u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def count(self, what: str, item_bytes: int) -> int:
        """Read how many items of at least ``item_bytes`` follow."""
        number = self.u64()
        if number > self.remaining // item_bytes:
            raise GgufError(f"it announces {number:,} {what} and ends before them")
        return number

    def string(self, what: str, max_bytes: int | None = None) -> str:
        length = self.count(f"bytes of {what}", 1)
        if max_bytes is not None and length > max_bytes:
            raise GgufError(f"{what} has {length:,} bytes, and at most {max_bytes:,} are allowed")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError:
            raise GgufError(f"{what} is not UTF-8") from None

    def value(self, key: str) -> object:
        """Read a type and a value of this type. Arrays become lists.

        A float32 becomes the shortest decimal number that rounds to it, such as the 0.6 or 1e-6 of the original configuration.
        """
        kind = self.u32()
        if kind == STRING:
            return self.string(f"the value of {key}")
        if kind != ARRAY:
            number = self._numbers(kind, 1, key)[0]
            return float(str(np.float32(number))) if isinstance(number, float) and kind == FLOAT32 else number
        kind = self.u32()
        if kind == ARRAY:
            raise GgufError(f"{key} is an array of arrays, which hasten does not read")
        length = self.count(f"items of {key}", 8 if kind == STRING else 1)
        self._num_items += length
        if self._num_items > MAX_ITEMS:
            raise GgufError(f"its arrays have more than {MAX_ITEMS:,} items")
        return self._strings(length, key) if kind == STRING else self._numbers(kind, length, key)

    def _take(self, length: int) -> bytes:
        if length > self.remaining:
            raise GgufError("it ends within its header")
        start, self.position = self.position, self.position + length
        return self._buffer[start : self.position]

    def _numbers(self, kind: int, number: int, key: str) -> list[object]:
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise GgufError(f"{key} has type {kind}, which version 3 does not have")
        items = np.frombuffer(self._take(number * dtype.itemsize), dtype)
        values: list[object] = (items != 0 if kind == BOOL else items).tolist()
        return values

    def _strings(self, number: int, key: str) -> list[str]:
        # A vocabulary with its merges has half a million strings, so the loop reads the buffer without ``_take``.
        buffer, position, end = self._buffer, self.position, len(self._buffer)
        length_of = _U64.unpack
        strings = []
        try:
            for _ in range(number):
                start = position + 8
                position = start + length_of(buffer[position:start])[0]
                if position > end:
                    raise GgufError(f"a string of {key} is longer than the file")
                strings.append(str(buffer[start:position], "utf-8"))
        except UnicodeDecodeError:
            raise GgufError(f"a string of {key} is not UTF-8") from None
        except StructError:
            raise GgufError(f"{key} has {number:,} strings, and the file ends before the last") from None
        self.position = position
        return strings
