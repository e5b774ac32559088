"""``ShareableTokens``: how many tokens of a prompt earlier prompts had too, at any position.

It knows token ids and a salt. Windows of a block or of 16 tokens, whichever is longer, are compared by a rolling hash at every
offset, as in rsync (Tridgell and Mackerras, "The rsync algorithm", 1996), but those of earlier prompts too: a hash costs eight
bytes, a prompt far more.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_SLOTS = 2**20  # of 8 bytes; a window takes one
MIN_WINDOW = 16  # tokens; texts that have nothing in common have shorter runs in common
_PIECE = 2**16  # windows that are hashed at a time; bounds the powers that are kept

Hashes = NDArray[np.uint64]


class ShareableTokens:
    """The windows of earlier prompts, in a table of fixed size.

    Each window overwrites the one that had its slot. Lost windows, and equal hashes of unequal windows (one in 2**64), distort a
    statistic and no output.
    """

    def __init__(
        self, block_size: int, num_slots: int = NUM_SLOTS, key: bytes | None = None, *, min_window: int = MIN_WINDOW
    ) -> None:
        """``num_slots``: a power of two. ``key``: of all hashes; None: a random one.

        ``min_window``: tokens of a window, for smaller blocks. With a random key, no prompt can be made to collide with one
        of another tenant.
        """
        assert num_slots >= 2 and num_slots & (num_slots - 1) == 0
        self._block_size, self._window = block_size, max(block_size, min_window)
        self._key = secrets.token_bytes(16) if key is None else key
        self._table: Hashes = np.zeros(num_slots, np.uint64)  # the system provides its memory as it is written
        self._shift = np.uint64(65 - num_slots.bit_length())
        base = self._keyed_hash(b"base") & ~7 | 5  # its powers repeat as late as they can, after 2**62
        self._powers = _powers(base, base, _PIECE + self._window - 1)
        self._inverse_powers = _powers(1, pow(base, -1, 2**64), _PIECE)

    def count(self, salt: str, token_ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt earlier ones of this salt have too, and remember the prompt.

        Tokens count if they lie in a run of a window or more that an earlier prompt has at any position; they count in whole
        blocks, and at most as many as a prefix hit could give: one token is always computed.
        """
        size = self._window
        if len(token_ids) < size:
            return 0
        hashes = self._window_hashes(np.frombuffer(array("q", token_ids), np.uint64))
        hashes ^= np.uint64(self._keyed_hash(b"salt:" + salt.encode()))
        slots = hashes >> self._shift
        found = np.flatnonzero(self._table[slots] == hashes)
        self._table[slots] = hashes
        if not len(found):
            return 0
        num_covered = size + int(np.minimum(np.diff(found), size).sum())  # windows overlap
        return min(num_covered, len(token_ids) - 1) // self._block_size * self._block_size

    def clear(self) -> None:
        """Forget all prompts."""
        self._table = np.zeros_like(self._table)

    def _window_hashes(self, tokens: Hashes) -> Hashes:
        """Return the polynomial hash mod 2**64 of the window at every offset, from differences of prefix sums."""
        size = self._window
        hashes: Hashes = np.empty(len(tokens) - size + 1, np.uint64)
        for begin in range(0, len(hashes), _PIECE):
            piece = tokens[begin : begin + _PIECE + size - 1]
            sums: Hashes = np.zeros(len(piece) + 1, np.uint64)
            np.cumsum(piece * self._powers[: len(piece)], out=sums[1:])
            num_windows = len(sums) - size
            hashes[begin : begin + num_windows] = (sums[size:] - sums[:-size]) * self._inverse_powers[:num_windows]
        return hashes

    def _keyed_hash(self, text: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=self._key).digest(), "little")


def _powers(first: int, factor: int, count: int) -> Hashes:
    """Return ``first * factor**i`` mod 2**64 for each i below ``count``."""
    factors: Hashes = np.full(count, factor, np.uint64)
    factors[0] = first
    return np.multiply.accumulate(factors)
