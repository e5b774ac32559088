"""``PrefixBlocks``: the KV blocks of a prefix, computed where the prefix cache lacks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hasten.core.plan import Runner, StepPlan
from hasten.engine.direct_steps import DirectSteps, not_finite
from hasten.kv.cache_manager import KvCacheManager
from hasten.kv.prefix_hash import cache_salt, extend_hashes
from hasten.sampling.sampler import rows_are_finite


class PrefixBlocks(DirectSteps):
    def __init__(self, runner: Runner, kv: KvCacheManager, max_num_batched_tokens: int, before_step: Callable[[int], None]) -> None:
        """``before_step`` is called with the number of tokens computed since its last call. It may raise."""
        super().__init__(runner, kv, max_num_batched_tokens)
        self._before_step = before_step

    @contextmanager
    def hold(self, token_ids: Sequence[int], tenant: str) -> Iterator[list[list[int]]]:
        """Yield, per group, the blocks of the prefix that the token after it attends to.

        They do not change meanwhile. ``token_ids`` fill whole blocks. Afterwards the prefix cache has these blocks. Raises
        ``CapacityError`` if the KV pool is too small, and ``HastenError`` if logits are not finite; such blocks are not cached.
        """
        kv, sequence_id = self.kv, self.new_sequence_id()
        assert token_ids and len(token_ids) % kv.block_size == 0, (len(token_ids), kv.block_size)
        # Blocks of requests with an exit rule are never here: those of a fixed exit layer have another salt, and blocks with tokens
        # that exited early are not published.
        salt = cache_salt(tenant, None)
        hashes: list[bytes] = []
        extend_hashes(hashes, salt, token_ids, kv.block_size)
        start = kv.open(sequence_id, salt, hashes)
        try:
            self._compute(sequence_id, token_ids, start)
            yield [[block for block in table if block is not None] for table in kv.block_tables(sequence_id)]
        finally:
            kv.close(sequence_id)

    def insert(self, token_ids: Sequence[int], tenant: str, write: Callable[[Sequence[Mapping[int, int]]], None]) -> int:
        """Add a prefix to a tenant's prefix cache; see ``KvCacheManager.insert_prefix``."""
        return self.kv.insert_prefix(cache_salt(tenant, None), token_ids, write)

    def remove(self, token_ids: Sequence[int], tenant: str) -> int:
        """Free the cached blocks of a tenant's prefix; see ``KvCacheManager.remove_prefix``."""
        return self.kv.remove_prefix(cache_salt(tenant, None), token_ids)

    def _compute(self, sequence_id: int, token_ids: Sequence[int], start: int) -> None:
        """Compute the tokens from ``start`` on."""
        num_new = 0
        while start < len(token_ids):
            self._before_step(num_new)
            chunk = token_ids[start : start + self.max_num_batched_tokens]
            # Every chunk has logits, so that none with NaN enters the prefix cache.
            planned = self.plan_row(sequence_id, start, chunk, 1)
            if planned is None:
                raise self.capacity_error("the prompt", len(token_ids))
            output = self.runner.run(StepPlan((planned[0],), tuple(planned[1])))
            if not all(rows_are_finite(output.logits)):
                raise not_finite()
            num_new, start = len(chunk), start + len(chunk)
            self.kv.commit(sequence_id, token_ids, start)
        self._before_step(num_new)
