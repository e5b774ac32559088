"""Runs a plan on a decoder: integers in, logits out. It knows no request, no setting and no text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan, logits_indices
from hasten.kv.pool import KvPool
from hasten.models.decoder import Decoder
from hasten.runners.paged_context import PagedContext


class TorchRunner:
    """The ``LayerwiseRunner`` of one decoder over one pool, eager torch. ``aux_layer_indices``: layers whose hidden states are wanted."""

    def __init__(self, decoder: Decoder, pool: KvPool, aux_layer_indices: Sequence[int] = ()) -> None:
        self._decoder, self._pool, self.aux_layer_indices = decoder, pool, tuple(aux_layer_indices)
        self.num_layers = decoder.spec.num_layers

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> RunnerOutput:
        decoder = self._decoder
        self.copy(plan.copies)
        ids_T, positions_T, context = self._context(plan.rows)
        seen: dict[int, Tensor] = {}
        hooks = {layer: partial(seen.__setitem__, layer) for layer in self.aux_layer_indices}
        hidden_TE = decoder.run(decoder.embed(ids_T), positions_T, context, hooks=hooks)
        logits_RV = decoder.head(hidden_TE[logits_indices(plan.rows)])
        return RunnerOutput(logits_RV, {layer: hidden.float() for layer, hidden in seen.items()})

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._pool.move(moves)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        self._pool.copy(copies)

    @torch.inference_mode()
    def layers(self, rows: Sequence[RowPlan], hidden_TE: Tensor | None, first: int, last: int) -> Tensor:
        ids_T, positions_T, context = self._context(rows)
        return self._decoder.run(self._decoder.embed(ids_T) if hidden_TE is None else hidden_TE, positions_T, context, first, last)

    @torch.inference_mode()
    def finish(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int) -> Tensor:
        return self._decoder.head(self.layers(rows, hidden_TE, first, self.num_layers)[logits_indices(rows)])

    @torch.inference_mode()
    def fill(self, rows: Sequence[RowPlan], hidden_TE: Tensor, first: int, last: int) -> None:
        self._decoder.fill(hidden_TE, self._context(rows)[2], first, last)

    @torch.inference_mode()
    def head(self, hidden_RE: Tensor) -> Tensor:
        return self._decoder.head(hidden_RE)

    def _context(self, rows: Sequence[RowPlan]) -> tuple[Tensor, Tensor, PagedContext]:
        """Token ids, positions, and what attention sees of these rows."""
        ids_T = torch.tensor([token for row in rows for token in row.token_ids])
        positions_T = torch.tensor([position for row in rows for position in row.positions])
        return (
            ids_T,
            positions_T,
            PagedContext(self._decoder.ops, self._pool, rows, positions_T, self._decoder.rotary.at(positions_T)),
        )
