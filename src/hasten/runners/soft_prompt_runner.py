"""``SoftPromptRunner``: runs steps with virtual tokens, whose embeddings are not the model's.

Shape suffixes: T tokens · R rows of logits · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan, StepView
from hasten.kv.pool import BlockPool
from hasten.ops.torch.inference import inference
from hasten.runners.base import LayerwiseRunner
from hasten.runners.soft_prompt_table import SoftPromptTable


class SoftPromptRunner:
    """A ``LayerwiseRunner`` for tokens of the vocabulary and of a table.

    Steps without virtual tokens pass through.
    """

    def __init__(self, runner: LayerwiseRunner, table: SoftPromptTable, embed: Callable[[Tensor], Tensor]) -> None:
        """``embed`` maps token ids of the vocabulary [T] to embeddings [T, E], without learned positions."""
        self._runner, self.table, self._embed = runner, table, embed
        self.num_layers, self.aux_layer_indices = runner.num_layers, runner.aux_layer_indices

    @property
    def pool(self) -> BlockPool:
        return self._runner.pool

    def run(self, plan: StepPlan, hidden_TE: Tensor | None = None) -> RunnerOutput:
        return self._runner.run(plan, self._virtual_input(plan.rows) if hidden_TE is None else hidden_TE)

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._runner.move(moves)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self._runner.copy(copies)

    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> StepView:
        return self._runner.layers(rows, self._virtual_input(rows) if hidden_TE is None else hidden_TE, first, last)

    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        return self._runner.finish(rows, hidden_TE, first)

    def fill_kv(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        self._runner.fill_kv(rows, hidden_TE, first, last)

    def head(self, hidden_RE: Tensor) -> Tensor:
        return self._runner.head(hidden_RE)

    def _virtual_input(self, rows: Sequence[RowPlan]) -> Tensor | None:
        """Return the embeddings of all tokens [T, E]; None if the model can embed them itself."""
        if all(row.token_ids[0] < self.table.vocab_size for row in rows):  # virtual tokens come first in a sequence
            return None
        return self._embedded(rows)

    @inference()
    def _embedded(self, rows: Sequence[RowPlan]) -> Tensor:
        """Return the embeddings of all tokens, virtual ones from the table. [T, E]"""
        ids_T = torch.tensor([token for row in rows for token in row.token_ids], dtype=torch.int64, device="cpu")
        is_virtual_T = ids_T >= self.table.vocab_size
        hidden_TE = self._embed(ids_T.masked_fill(is_virtual_T, 0))
        hidden_TE[is_virtual_T] = self.table.embeddings(ids_T[is_virtual_T]).to(hidden_TE.dtype)
        return hidden_TE
