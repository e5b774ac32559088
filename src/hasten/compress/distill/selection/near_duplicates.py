"""Near-duplicates: of examples that share most of their shingles, the first one is kept.

MinHash proposes pairs, and the exact Jaccard similarity decides. A pair at the threshold is missed with a probability of at most
``MAX_MISS_PROBABILITY``, and a more similar one less often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hasten.compress.distill.selection.minhash import shared_buckets, signatures
from hasten.compress.distill.selection.pool import Record
from hasten.compress.distill.selection.shingles import jaccard, shingle_hashes, split_words

NEAR_DUPLICATES = "near-duplicates of earlier examples"
# An estimate of 128 hashes is so far below the similarity with a probability under 1e-6 (Hoeffding, 1963).
_ESTIMATE_MARGIN = 0.25
_REMEMBERED = 1024  # records whose shingles are not computed again


def drop_near_duplicates(
    records: Sequence[Record], max_similarity: float, tick: Callable[[], None] = lambda: None
) -> tuple[list[Record], dict[str, int]]:
    """Return the records that are no near-duplicates, and how many were dropped.

    No two of them have the Jaccard similarity ``max_similarity`` or a larger one. ``tick`` is called after every record that was
    hashed; it may raise.
    """

    def hashed(record: Record) -> NDArray[np.uint64]:
        tick()
        return record_shingles(record)

    signatures_NH = signatures(map(hashed, records), len(records))
    buckets = shared_buckets(signatures_NH, max_similarity)
    shingles = lru_cache(maxsize=_REMEMBERED)(lambda index: record_shingles(records[index]))
    members: dict[int, list[int]] = {}  # bucket -> records of it that are kept
    kept = []
    for index, record in enumerate(records):
        own = buckets.get(index, [])
        near = np.array(sorted({other for bucket in own for other in members.get(bucket, ())}), np.int64)
        if len(near):
            estimates = (signatures_NH[near] == signatures_NH[index]).mean(1)
            near = near[estimates >= max_similarity - _ESTIMATE_MARGIN]
        if any(jaccard(shingles(index), shingles(other)) >= max_similarity for other in near.tolist()):
            continue
        kept.append(record)
        for bucket in own:
            members.setdefault(bucket, []).append(index)
    return kept, {NEAR_DUPLICATES: len(records) - len(kept)}


def record_shingles(record: Record) -> NDArray[np.uint64]:
    """Return the shingles of the input and the output together."""
    return shingle_hashes([*split_words(record.input), *split_words(record.output)])
