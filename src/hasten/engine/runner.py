"""Runs a plan on a decoder: integers in, logits out. It knows no request, no setting and no text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, RunnerOutput, SlotMove, StepPlan, wanted_tokens
from hasten.engine.context import PagedContext
from hasten.kv.pool import KvPool
from hasten.models.decoder import Decoder


class DecoderRunner:
    """The ``StagedRunner`` of one decoder over one pool, eager torch. ``taps``: layers whose hidden states are wanted."""

    def __init__(self, decoder: Decoder, pool: KvPool, taps: Sequence[int] = ()) -> None:
        self._decoder, self._pool, self.taps = decoder, pool, tuple(taps)
        self.num_layers = decoder.spec.num_layers

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> RunnerOutput:
        decoder = self._decoder
        self.copy(plan.copies)
        ids_T, positions_T, context = self._context(plan.rows)
        seen: dict[int, Tensor] = {}
        taps = {layer: partial(seen.__setitem__, layer) for layer in self.taps}
        hidden_TE = decoder.run(decoder.embed(ids_T), positions_T, context, taps=taps)
        logits_RV = decoder.head(hidden_TE[wanted_tokens(plan.rows)])
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
        return self._decoder.head(self.layers(rows, hidden_TE, first, self.num_layers)[wanted_tokens(rows)])

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
