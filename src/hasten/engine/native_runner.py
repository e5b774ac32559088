"""Runs a plan on the native program of a decoder: one call per step. It knows no request, no setting and no text."""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from hasten.core.plan import RowPlan, RunnerOutput, SlotMove, StepPlan
from hasten.kv.native_pool import NativeKvPool
from hasten.ops.cpu.library import StepArguments
from hasten.ops.cpu.program import Program


class NativeRunner:
    """The ``Runner`` of a lowered decoder. ``native_seconds`` is the time spent in native steps so far.

    ``taps``: of layers whose hidden states are wanted, the program's own memory of them [most tokens of a step, E].
    """

    def __init__(self, program: Program, pool: NativeKvPool, taps: Mapping[int, Tensor]) -> None:
        self._program, self._pool, self._taps = program, pool, taps
        self.native_seconds = 0.0

    def run(self, plan: StepPlan) -> RunnerOutput:
        self._pool.copy(plan.copies)
        token_ids, rows, wanted = array("i"), array("i"), array("i")
        branches = False
        for row in plan.rows:
            begin = len(token_ids)
            token_ids.extend(row.token_ids)
            end = len(token_ids)
            rows.extend((begin, end, row.start))
            wanted.extend(range(end - row.num_logits, end))
            if row.tree:
                branches = True
        tables, blocks = _tables(plan.rows, len(self._pool.groups))
        views = _views(plan.rows) if branches else None
        step = StepArguments(
            num_tokens=len(token_ids),
            num_rows=len(plan.rows),
            num_groups=len(self._pool.groups),
            first_layer=0,
            last_layer=self._program.num_layers,
            token_ids=_address(token_ids),
            rows=_address(rows),
            tables=_address(tables),
            blocks=_address(blocks),
            logits_tokens=_address(wanted),
            tree=None if views is None else _address(views),
        )
        begin_time = time.perf_counter()
        logits_RV = self._program.run(step, len(wanted))
        self.native_seconds += time.perf_counter() - begin_time
        return RunnerOutput(logits_RV, {layer: rows_ME[: len(token_ids)] for layer, rows_ME in self._taps.items()})

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._pool.move(moves)


def _tables(rows: Sequence[RowPlan], num_groups: int) -> tuple[array[int], array[int]]:
    """Block tables end to end, and for each group and row where its table begins and which block of the sequence is its first."""
    tables, blocks = array("i"), array("i")
    for group in range(num_groups):
        for row in rows:
            table = row.block_tables[group]
            # Blocks are dropped from the front only: those that fell out of the window.
            first = table.count(None) if table and table[0] is None else 0
            tables.extend((len(blocks), first))
            blocks.extend(cast("tuple[int, ...]", table[first:]))
    return tables, blocks


def _views(rows: Sequence[RowPlan]) -> array[int]:
    """Of each token of the step: the tokens of its row that it sees, as bits; 0 in rows that do not branch."""
    views = array("Q")
    for row in rows:
        assert not row.tree or len(row.token_ids) <= 64, "a row that branches is one word wide"
        views.extend(row.views if row.tree else [0] * len(row.token_ids))
    return views


def _address(values: array[int]) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.buffer_info()[0])
