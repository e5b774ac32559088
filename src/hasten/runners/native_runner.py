"""Runs a plan on the native program of a decoder: one call per step. It knows no request, no setting and no text."""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Sequence
from typing import cast

from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan, logits_indices
from hasten.kv.native_pool import NativeKvPool
from hasten.models.compile_program import CompiledProgram
from hasten.ops.cpu.library import StepArguments
from hasten.ops.cpu.program import Program


class NativeRunner:
    """The ``LayerwiseRunner`` of a compiled decoder. ``native_seconds`` is the time spent in native steps so far."""

    def __init__(self, program: Program, pool: NativeKvPool, compiled: CompiledProgram) -> None:
        self._program, self._pool = program, pool
        self.num_layers = program.num_layers // 2
        self._residual_TE, self._left_TE = program.view(compiled.residual), program.view(compiled.left)
        # The program's own memory of them [most tokens of a step, E].
        self._aux_hidden_states = {layer: program.view(buffer) for layer, buffer in compiled.aux_hidden_states.items()}
        self.aux_layer_indices = tuple(self._aux_hidden_states)
        self.native_seconds = 0.0

    def run(self, plan: StepPlan) -> RunnerOutput:
        self.copy(plan.copies)
        logits_RV = self._step(plan.rows, 0, self.num_layers, logits_indices(plan.rows))
        return RunnerOutput(logits_RV, {layer: rows_ME[: plan.num_tokens] for layer, rows_ME in self._aux_hidden_states.items()})

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._pool.move(moves)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self._pool.copy(copies)

    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> Tensor:
        if hidden_TE is not None:
            self._take(hidden_TE)
        self._step(rows, first, last)
        return self._residual_TE[: sum(len(row.token_ids) for row in rows)]

    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        self._take(hidden_TE)
        return self._step(rows, first, self.num_layers, logits_indices(rows))

    def go_on(self, rows: Sequence[RowPlan], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Of a program that reads states beside embeddings (an EAGLE head): its states [T, E] and logits [R, V]."""
        self._left_TE[: len(hidden_TE)] = hidden_TE
        logits_RV = self._step(rows, 0, self._program.num_layers, logits_indices(rows))
        return self._residual_TE[: len(hidden_TE)], logits_RV

    def fill(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        self._left_TE[: len(hidden_TE)] = hidden_TE
        self._step(rows, self.num_layers + first, self.num_layers + last)

    def head(self, hidden_RE: Tensor) -> Tensor:
        """Rows that have no place in the pool: the prologue and the head alone."""
        self._take(hidden_RE)
        end = 2 * self.num_layers
        wanted = array("i", range(len(hidden_RE)))
        step = StepArguments(
            num_tokens=len(hidden_RE),
            num_groups=len(self._pool.groups),
            first_layer=end,
            last_layer=end,
            logits_tokens=_address(wanted),
        )
        return self._timed(step, len(wanted))

    def _take(self, hidden_TE: Tensor) -> None:
        """Whatever is not there already goes to where layers read it."""
        there = self._residual_TE[: len(hidden_TE)]
        if hidden_TE.data_ptr() != there.data_ptr():
            there.copy_(hidden_TE)

    def _step(self, rows: Sequence[RowPlan], first: int, last: int, wanted: Sequence[int] = ()) -> Tensor:
        """Layers ``[first, last)`` of the program, and the logits of the tokens ``wanted``."""
        token_ids, places, logits_tokens = array("i"), array("i"), array("i", wanted)
        branches = False
        for row in rows:
            begin = len(token_ids)
            token_ids.extend(row.token_ids)
            places.extend((begin, len(token_ids), row.start))
            if row.tree:
                branches = True
        tables, blocks = _tables(rows, len(self._pool.groups))
        views = _views(rows) if branches else None
        step = StepArguments(
            num_tokens=len(token_ids),
            num_rows=len(rows),
            num_groups=len(self._pool.groups),
            first_layer=first,
            last_layer=last,
            token_ids=_address(token_ids),
            rows=_address(places),
            tables=_address(tables),
            blocks=_address(blocks),
            logits_tokens=_address(logits_tokens),
            tree=None if views is None else _address(views),
        )
        return self._timed(step, len(logits_tokens))

    def _timed(self, step: StepArguments, num_logits: int) -> Tensor:
        begin_time = time.perf_counter()
        logits_RV = self._program.run(step, num_logits)
        self.native_seconds += time.perf_counter() - begin_time
        return logits_RV


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
