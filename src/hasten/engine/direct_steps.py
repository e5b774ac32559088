"""``DirectSteps``: sequences computed beside the scheduler's, between two steps of the engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hasten.core.early_exit import ExitPlan
from hasten.core.errors import CapacityError, HastenError
from hasten.core.plan import BlockCopy, RowPlan, Runner
from hasten.kv.cache_manager import KvCacheManager


class DirectSteps:
    def __init__(self, runner: Runner, kv: KvCacheManager, max_num_batched_tokens: int) -> None:
        self.runner, self.kv, self.max_num_batched_tokens = runner, kv, max_num_batched_tokens

    def new_sequence_id(self) -> int:
        """Return an unused id; the scheduler's ids are not negative."""
        return next(number for number in itertools.count(-1, -1) if not self.kv.is_open(number))

    def plan_row(
        self,
        sequence_id: int,
        start: int,
        token_ids: Sequence[int],
        num_logits: int,
        exit_plan: ExitPlan | None = None,
        *,
        may_drop_pins: bool = True,
    ) -> tuple[RowPlan, list[BlockCopy]] | None:
        """Return a row and the block copies that it needs; None if the pool has too few blocks.

        ``may_drop_pins``: pins give way to it.
        """
        while (copies := self.kv.reserve(sequence_id, start, start + len(token_ids))) is None:
            if not (may_drop_pins and self.kv.pins.drop_one()):
                return None
        tables = self.kv.block_tables(sequence_id)
        return RowPlan(sequence_id, start, tuple(token_ids), tables, num_logits, exit_plan=exit_plan), copies

    def check_open(self, sequence_id: int) -> None:
        """Raise ``HastenError`` if a fault of other requests has freed all blocks meanwhile."""
        if not self.kv.is_open(sequence_id):
            raise HastenError("a step of other requests failed, which ends all that run", remedy="Try again")

    def capacity_error(self, what: str, num_tokens: int, remedy: str = "Shorten it, wait for running requests") -> CapacityError:
        return CapacityError(
            f"{what} does not fit the KV pool",
            got=f"{num_tokens} tokens",
            allowed=f"{self.kv.num_blocks} blocks of {self.kv.block_size} tokens, less those of running requests",
            remedy=f"{remedy}, or raise kv_cache_memory",
        )


def not_finite(what: str = "logits") -> HastenError:
    return HastenError(f"the model's {what} for these texts are not finite numbers (NaN or infinity)")
