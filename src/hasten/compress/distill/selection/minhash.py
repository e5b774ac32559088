"""MinHash signatures, and buckets of records whose signatures share a band.

The methods are of Broder, 1997, and of Indyk and Motwani, 1998.

Shape suffixes: N records · H hash functions · M shingles of a record.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hasten.compress.distill.selection.shingles import mix

NUM_HASHES = 128
MAX_MISS_PROBABILITY = 1e-6  # that two records of the threshold's similarity share no band
_CHUNK = 4096  # shingles that are hashed at a time: 4 MiB


def signatures(shingle_sets: Iterable[NDArray[np.uint64]], count: int) -> NDArray[np.uint32]:
    """Return the least hash of each record's shingles under ``NUM_HASHES`` functions, [N, H].

    The share of equal entries of two records estimates their Jaccard similarity.
    """
    generator = np.random.Generator(np.random.PCG64(0))  # the same functions in every run
    factors_H = generator.integers(0, 2**64, NUM_HASHES, np.uint64) | np.uint64(1)
    offsets_H = generator.integers(0, 2**64, NUM_HASHES, np.uint64)
    signatures_NH = np.full((count, NUM_HASHES), np.iinfo(np.uint32).max, np.uint32)
    for signature_H, shingles_M in zip(signatures_NH, shingle_sets, strict=True):
        for start in range(0, len(shingles_M), _CHUNK):
            hashes_MH = (shingles_M[start : start + _CHUNK, None] * factors_H + offsets_H) >> np.uint64(32)
            np.minimum(signature_H, hashes_MH.min(0).astype(np.uint32), out=signature_H)
    return signatures_NH


def rows_per_band(similarity: float) -> int:
    """Return the most rows of a band with which records of this similarity share a band almost surely.

    More rows bring fewer candidates that are no near-duplicates.
    """
    fitting = (r for r in range(NUM_HASHES, 1, -1) if (1 - similarity**r) ** (NUM_HASHES // r) <= MAX_MISS_PROBABILITY)
    return next(fitting, 1)


def shared_buckets(signatures_NH: NDArray[np.uint32], similarity: float) -> dict[int, list[int]]:
    """Return the buckets of each record that shares one with another record: record -> numbers of buckets.

    Memory grows with the number of records that do, and not with the number of bands.
    """
    rows = rows_per_band(similarity)
    odd = np.random.Generator(np.random.PCG64(1)).integers(0, 2**64, rows, np.uint64) | np.uint64(1)
    buckets: dict[int, list[int]] = {}
    number = 0
    for first in range(0, NUM_HASHES - rows + 1, rows):
        keys_N = mix((signatures_NH[:, first : first + rows] * odd).sum(1, dtype=np.uint64))
        order_N = np.argsort(keys_N, kind="stable")
        starts = np.flatnonzero(np.diff(keys_N[order_N], prepend=~keys_N[order_N[:1]]))
        for start, stop in zip(starts, [*starts[1:], len(order_N)], strict=True):
            if stop - start > 1:
                for record in order_N[start:stop].tolist():
                    buckets.setdefault(record, []).append(number)
                number += 1
    return buckets
