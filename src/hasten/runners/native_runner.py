"""``NativeRunner``: runs step plans on a compiled program, one native call per step.

Shape suffixes: T tokens · R rows of logits · E hidden size · V vocabulary.
"""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan, StepView, logits_indices
from hasten.kv.pool import NativeKvPool
from hasten.models.compile_program import CompiledProgram
from hasten.ops.cpu.library import StepArguments
from hasten.ops.cpu.program import Program


class NativeRunner:
    """The ``LayerwiseRunner`` of a compiled decoder; ``run_eagle`` is for a compiled EAGLE head."""

    def __init__(self, program: Program, pool: NativeKvPool, compiled: CompiledProgram) -> None:
        self._program, self.pool, self._positions = program, pool, compiled.positions
        self.num_layers = program.num_layers // 2  # see ``compile_program``
        # The program's memory; each buffer has one row per token of the largest step.
        self._hidden_TE, self._exit_hidden_TE = program.view(compiled.residual), program.view(compiled.exit_hidden)
        self._aux_hidden_states = {layer: program.view(buffer) for layer, buffer in compiled.aux_hidden_states.items()}
        self.aux_layer_indices = tuple(self._aux_hidden_states)
        self.native_seconds = 0.0  # spent in native calls so far

    def run(self, plan: StepPlan, hidden_TE: Tensor | None = None) -> RunnerOutput:
        self.copy(plan.copies)
        begin = self._begin(plan.rows, hidden_TE, 0)
        logits_RV = self._step(plan.rows, begin, 1 + self.num_layers, logits_indices(plan.rows))
        num_tokens = plan.num_tokens
        return RunnerOutput(logits_RV, {layer: StepView(buffer[:num_tokens]) for layer, buffer in self._aux_hidden_states.items()})

    def move(self, moves: Sequence[SlotMove]) -> None:
        self.pool.move(moves)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self.pool.copy(copies)

    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> StepView:
        self._step(rows, self._begin(rows, hidden_TE, first), 1 + last)
        return StepView(self._hidden_TE[: sum(len(row.token_ids) for row in rows)])

    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        return self._step(rows, self._begin(rows, hidden_TE, first), 1 + self.num_layers, logits_indices(rows))

    def fill_kv(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        self._exit_hidden_TE[: len(hidden_TE)] = hidden_TE
        fill_kv = 1 + self.num_layers
        self._step(rows, fill_kv + first, fill_kv + last)

    def head(self, hidden_RE: Tensor) -> Tensor:
        self._load_hidden(hidden_RE)
        end, num_tokens = self._program.num_layers, len(hidden_RE)
        return self._step((), end, end, range(num_tokens), num_tokens)  # no layer runs, so no token needs a KV slot

    def run_eagle(self, rows: Sequence[RowPlan], hidden_TE: Tensor) -> tuple[StepView, Tensor]:
        """Run the layer of an EAGLE head; return its hidden states [T, E] and the logits of the rows [R, V]."""
        self._exit_hidden_TE[: len(hidden_TE)] = hidden_TE
        logits_RV = self._step(rows, 0, self._program.num_layers, logits_indices(rows))
        return StepView(self._hidden_TE[: len(hidden_TE)]), logits_RV

    def _begin(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int) -> int:
        """Load the input of the decoder's layer ``first``; return the layer of the program to begin at."""
        if hidden_TE is None:
            return 0
        if first == 0 and self._positions is not None:
            positions = [position for row in rows for position in row.positions]
            hidden_TE = hidden_TE + self._positions(torch.tensor(positions, dtype=torch.int64, device="cpu"))
        self._load_hidden(hidden_TE)
        return 1 + first

    def _load_hidden(self, hidden_TE: Tensor) -> None:
        """Copy the hidden states to where the layers read them, unless they are there."""
        target_TE = self._hidden_TE[: len(hidden_TE)]
        if hidden_TE.data_ptr() != target_TE.data_ptr():
            target_TE.copy_(hidden_TE)

    def _step(
        self,
        rows: Sequence[RowPlan],
        first: int,
        last: int,
        logits_tokens: Sequence[int] = (),
        num_tokens: int | None = None,
    ) -> Tensor:
        """Run the program's layers ``[first, last)``; return the logits of the tokens ``logits_tokens``."""
        token_ids, bounds, logits = array("i"), array("i"), array("i", logits_tokens)
        for row in rows:
            begin = len(token_ids)
            token_ids.extend(row.token_ids)
            bounds.extend((begin, len(token_ids), row.start))
        tables, blocks = _block_tables(rows, len(self.pool.groups))
        bitmasks = _attention_bitmasks(rows) if any(row.tree for row in rows) else None
        step = StepArguments(
            num_tokens=len(token_ids) if num_tokens is None else num_tokens,
            num_sequences=len(rows),
            num_groups=len(self.pool.groups),
            num_block_ids=len(blocks),
            first_layer=first,
            last_layer=last,
            token_ids=_address(token_ids),
            sequences=_address(bounds),
            block_tables=_address(tables),
            block_ids=_address(blocks),
            logits_indices=_address(logits),
            tree_mask=None if bitmasks is None else _address(bitmasks),
        )
        begin_time = time.perf_counter()
        logits_RV = self._program.run(step, len(logits))
        self.native_seconds += time.perf_counter() - begin_time
        return logits_RV


def _block_tables(rows: Sequence[RowPlan], num_groups: int) -> tuple[array[int], array[int]]:
    """Return the tables and the blocks of all rows of all groups.

    A table is the offset of the row's first live block in ``blocks``, and that block's index in the sequence.
    """
    tables, blocks = array("i"), array("i")
    for group in range(num_groups):
        for row in rows:
            table = row.block_tables[group]
            # Only leading blocks are None: those that fell out of the window.
            first = table.count(None) if table and table[0] is None else 0
            tables.extend((len(blocks), first))
            blocks.extend(cast("tuple[int, ...]", table[first:]))
    return tables, blocks


def _attention_bitmasks(rows: Sequence[RowPlan]) -> array[int]:
    """Return, per token, the tokens of its row that it attends to as bits; 0 in rows without a tree."""
    bitmasks = array("Q")
    for row in rows:
        assert not row.tree or len(row.token_ids) <= 64, "a row with a tree has at most 64 tokens"
        bitmasks.extend(row.attention_bitmasks if row.tree else [0] * len(row.token_ids))
    return bitmasks


def _address(values: array[int]) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.buffer_info()[0])
