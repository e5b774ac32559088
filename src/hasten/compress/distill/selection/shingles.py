"""Shingles: runs of ``WIDTH`` words, the sets of which measure how much two texts share.

The method is of Broder, 1997. No tokenizer is needed, so near-duplicates are the same for every model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WIDTH = 5  # words of a shingle
_WORD = re.compile(r"\w+|[^\w\s]")
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD], np.uint64)


def split_words(text: str) -> list[str]:
    """Return the words in lower case; each punctuation mark is one, too."""
    return _WORD.findall(text.lower())


def shingle_hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return the hashes of all different shingles, ascending. Fewer than ``WIDTH`` words are one shingle."""
    hashes = np.fromiter((_word_hash(word) for word in words), np.uint64, len(words))
    if len(hashes) < WIDTH:
        hashes = np.concatenate((hashes, np.zeros(WIDTH - len(hashes), np.uint64)))
    combined = sum(hashes[start : len(hashes) - WIDTH + 1 + start] * _ODD[start] for start in range(WIDTH))
    return np.unique(mix(np.asarray(combined, np.uint64)))


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Return the share of common shingles among all shingles of two texts."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def mix(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes of which every bit depends on every bit: the finaliser of SplitMix64 (2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
