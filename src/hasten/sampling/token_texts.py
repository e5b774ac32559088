"""``TokenTexts``: finds tokens of a vocabulary by their text."""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEPARATOR = b"\xff"  # a byte that no text in UTF-8 has

TokenIds = NDArray[np.int64]


class TokenTexts:
    """``token_bytes``: what each token adds to a text, by token id. Threads may share it."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes

    def tail(self, token_ids: Sequence[int], num_bytes: int) -> bytes:
        """Return at least the last ``num_bytes`` bytes of a text, or all of it."""
        pieces: list[bytes] = []
        index = len(token_ids)
        while num_bytes > 0 and index > 0:
            index -= 1
            if 0 <= token_ids[index] < len(self._token_bytes):
                pieces.append(self._token_bytes[token_ids[index]])
                num_bytes -= len(pieces[-1])
        return b"".join(reversed(pieces))

    def containing(self, word: bytes) -> TokenIds:
        """Return the tokens whose text has the word in it."""
        starts, joined = self._joined
        places = [match.start() for match in re.finditer(re.escape(word), joined)]
        return np.unique(np.searchsorted(starts, np.array(places, dtype=np.int64), side="right") - 1)

    def starting_with(self, prefix: bytes) -> TokenIds:
        """Return the tokens whose text begins with ``prefix``, which is part of a text and not empty."""
        order, texts = self._sorted
        after = prefix[:-1] + bytes((prefix[-1] + 1,))  # no byte of a text in UTF-8 is 255
        return order[bisect_left(texts, prefix) : bisect_left(texts, after)]

    @functools.cached_property
    def _joined(self) -> tuple[TokenIds, bytes]:
        """The start of each token in the texts of all tokens, and these."""
        lengths = np.array([len(text) + 1 for text in self._token_bytes], dtype=np.int64)
        return np.cumsum(lengths) - lengths, _SEPARATOR.join(self._token_bytes)

    @functools.cached_property
    def _sorted(self) -> tuple[TokenIds, list[bytes]]:
        """The token ids in the order of their texts, and the texts."""
        order = sorted(range(len(self._token_bytes)), key=self._token_bytes.__getitem__)
        return np.array(order, dtype=np.int64), [self._token_bytes[token_id] for token_id in order]
