"""``TorchRunner``: runs step plans on a decoder, in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan, StepView, logits_indices
from hasten.kv.pool import KvPool
from hasten.models.decoder import Decoder
from hasten.ops.torch.inference import inference
from hasten.runners.paged_context import PagedContext


class TorchRunner:
    """The ``LayerwiseRunner`` of one decoder over one KV pool."""

    def __init__(self, decoder: Decoder, pool: KvPool, aux_layer_indices: Sequence[int] = ()) -> None:
        self._decoder, self.pool, self.aux_layer_indices = decoder, pool, tuple(aux_layer_indices)
        self.num_layers = decoder.spec.num_layers

    @inference()
    def run(self, plan: StepPlan, hidden_TE: Tensor | None = None) -> RunnerOutput:
        decoder = self._decoder
        self.copy(plan.copies)
        ids_T, context = self._inputs(plan.rows)
        found: dict[int, Tensor] = {}
        hooks = {layer: partial(found.__setitem__, layer) for layer in self.aux_layer_indices}
        hidden_TE = decoder.embed(ids_T) if hidden_TE is None else hidden_TE
        hidden_TE = decoder.run(hidden_TE, context.positions_T, context, hooks=hooks)
        logits_RV = decoder.head(hidden_TE[logits_indices(plan.rows)])
        return RunnerOutput(logits_RV, {layer: StepView(hidden_TE.float()) for layer, hidden_TE in found.items()})

    def move(self, moves: Sequence[SlotMove]) -> None:
        self.pool.move(moves)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self.pool.copy(copies)

    @inference()
    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> StepView:
        ids_T, context = self._inputs(rows)
        hidden_TE = self._decoder.embed(ids_T) if hidden_TE is None else hidden_TE
        return StepView(self._decoder.run(hidden_TE, context.positions_T, context, first, last))

    @inference()
    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        return self._decoder.head(self.layers(rows, hidden_TE, first, self.num_layers)[logits_indices(rows)])

    @inference()
    def fill_kv(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        self._decoder.fill_kv(hidden_TE, self._inputs(rows)[1], first, last)

    @inference()
    def head(self, hidden_RE: Tensor) -> Tensor:
        return self._decoder.head(hidden_RE)

    def _inputs(self, rows: Sequence[RowPlan]) -> tuple[Tensor, PagedContext]:
        ids_T = torch.tensor([token for row in rows for token in row.token_ids], dtype=torch.int64, device="cpu")
        return ids_T, PagedContext(self._decoder.ops, self.pool, rows, self._decoder.rotary)
