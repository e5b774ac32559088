"""Measuring how long a step takes by its number of tokens, before the first request arrives."""

from __future__ import annotations

import time

from hasten.core.plan import RowPlan, Runner, StepPlan
from hasten.runners.base import KvCacheConfig

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # tokens per step
REPEATS = 3  # the fastest one counts: other load on the machine can only slow a step down
MAX_SECONDS = 1.0  # after that no further size is measured: a cost model extrapolates from the last two


def measure_step_seconds(runner: Runner, kv: KvCacheConfig, max_num_batched_tokens: int) -> dict[int, float]:
    """Return tokens per step -> seconds, for at least two sizes.

    Writes into the first KV blocks, which must be free.
    """
    largest = min(max_num_batched_tokens, kv.num_blocks * kv.block_size)
    plans = {size: _plan(size, kv) for size in SIZES if size <= largest}
    if len(plans) < 2:
        return {1: 1.0, 2: 2.0}  # the KV cache holds one token, so no draft ever fits
    runner.run(plans[SIZES[0]])  # the first step reads the weights into memory and is slower than all later ones
    begin = time.perf_counter()
    seconds: dict[int, float] = {}
    for _ in range(REPEATS):  # all sizes in turn, so that a slow moment of the machine does not hit one size alone
        for size, plan in plans.items():
            step_begin = time.perf_counter()
            if len(seconds) > 1 and step_begin - begin > MAX_SECONDS:
                return seconds
            runner.run(plan)
            seconds[size] = min(time.perf_counter() - step_begin, seconds.get(size, float("inf")))
    return seconds


def _plan(size: int, kv: KvCacheConfig) -> StepPlan:
    block_table = tuple(range(-(-size // kv.block_size)))
    return StepPlan((RowPlan(-1, 0, (0,) * size, (block_table,) * len(kv.groups), size),))
