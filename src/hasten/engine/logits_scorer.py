"""Logits at every position of a given text, by the path that serves: the engine's runner over its paged KV pool.

A text is computed in pieces, each of which reads what the ones before it left in the pool. So chunked prefill, the block tables and
the pool's dtype are part of what is measured. It knows no request, no sampling and no quality figure.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence

from torch import Tensor

from hasten.core.errors import CapacityError
from hasten.core.plan import RowPlan, Runner, StepPlan
from hasten.kv.cache_manager import KvCacheManager


class LogitsScorer:
    """The ``Scorer`` of one engine. Its blocks are taken from the engine's own space, and nobody else finds them."""

    def __init__(self, runner: Runner, kv: KvCacheManager, max_num_batched_tokens: int) -> None:
        """``max_num_batched_tokens``: the most tokens that one step may compute."""
        self._runner, self._kv, self.max_num_batched_tokens = runner, kv, max_num_batched_tokens
        self._ids = itertools.count(-1, -1)  # the scheduler numbers its sequences from 0 up

    def logits(self, token_ids: Sequence[int], chunk_size: int) -> Generator[Tensor, None, None]:
        """See ``Scorer``; ``chunk_size`` is at most ``max_num_batched_tokens``.

        Raises ``CapacityError`` if the text does not fit the KV pool.
        """
        assert 1 <= chunk_size <= self.max_num_batched_tokens, (chunk_size, self.max_num_batched_tokens)
        kv, sequence_id = self._kv, next(self._ids)
        kv.open(sequence_id, "", ())
        try:
            for start in range(0, len(token_ids), chunk_size):
                now = tuple(token_ids[start : start + chunk_size])
                if kv.reserve(sequence_id, start, start + len(now)) is None:
                    raise CapacityError(
                        "the text does not fit the KV pool",
                        got=f"{len(token_ids)} tokens",
                        allowed=f"{kv.num_blocks} blocks of {kv.block_size} tokens, less what running requests hold",
                        remedy="Use a shorter window, or raise kv_cache_memory",
                    )
                row = RowPlan(sequence_id, start, now, kv.block_tables(sequence_id), len(now))
                yield self._runner.run(StepPlan((row,))).logits
                kv.commit(sequence_id, token_ids, start + len(now))
        finally:
            kv.discard(sequence_id)
