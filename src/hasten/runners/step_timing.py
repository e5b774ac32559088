"""What a step costs by the number of its tokens, measured on the runner that will run it, before the first request is there."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hasten.core.plan import RowPlan, Runner, StepPlan
from hasten.kv.group import KvGroup

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
REPEATS = 3  # the fastest one counts: whatever else happens can only make a step slower
ENOUGH = 1.0  # seconds: larger steps than could be measured by then are as dear per token as the last two


def measure_step_seconds(
    runner: Runner, groups: Sequence[KvGroup], num_blocks: int, block_size: int, max_step: int
) -> dict[int, float]:
    """Tokens of a step -> seconds, for two sizes at least. Writes to the first blocks of the pool, which nobody may hold."""
    largest = min(max_step, num_blocks * block_size)
    sizes = [size for size in SIZES if size <= largest]
    if len(sizes) < 2:
        return {1: 1.0, 2: 2.0}  # a pool for one token, in which nothing can be guessed
    plans = {size: _plan(size, groups, block_size) for size in sizes}
    _seconds(runner, plans[sizes[0]])  # reads the weights for the first time, which takes as no later step does
    begin = time.perf_counter()
    measured: dict[int, float] = {}
    for _ in range(REPEATS):  # of all sizes, so that what slows the machine for a while is not one size's alone
        for size, plan in plans.items():
            if len(measured) > 1 and time.perf_counter() - begin > ENOUGH:
                return measured
            seconds = _seconds(runner, plan)
            measured[size] = min(seconds, measured.get(size, seconds))
    return measured


def _plan(size: int, groups: Sequence[KvGroup], block_size: int) -> StepPlan:
    table = tuple(tuple(range(-(-size // block_size))) for _ in groups)
    return StepPlan((RowPlan(-1, 0, (0,) * size, table, size),))


def _seconds(runner: Runner, plan: StepPlan) -> float:
    begin = time.perf_counter()
    runner.run(plan)
    return time.perf_counter() - begin
