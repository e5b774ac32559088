"""Runs a plan on a decoder: integers in, logits out. It knows no request, no setting and no text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hasten.core.plan import RunnerOutput, SlotMove, StepPlan
from hasten.engine.context import PagedContext
from hasten.kv.pool import KvPool
from hasten.models.decoder import Decoder


class DecoderRunner:
    """The ``Runner`` of a real model: one decoder over one pool, eager torch. ``taps``: layers whose hidden states are wanted."""

    def __init__(self, decoder: Decoder, pool: KvPool, taps: Sequence[int] = ()) -> None:
        self._decoder, self._pool, self._taps = decoder, pool, tuple(taps)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> RunnerOutput:
        decoder = self._decoder
        self._pool.copy(plan.copies)
        ids_T = torch.tensor([token for row in plan.rows for token in row.token_ids])
        positions_T = torch.tensor([position for row in plan.rows for position in row.positions])
        context = PagedContext(decoder.ops, self._pool, plan.rows, positions_T, decoder.rotary.at(positions_T))
        seen: dict[int, Tensor] = {}
        taps = {layer: partial(seen.__setitem__, layer) for layer in self._taps}
        hidden_TE = decoder.run(decoder.embed(ids_T), positions_T, context, taps=taps)
        wanted: list[int] = []
        end = 0
        for row in plan.rows:
            end += len(row.token_ids)
            wanted += range(end - row.num_logits, end)
        logits_RV = decoder.head(hidden_TE[torch.tensor(wanted, dtype=torch.long)])
        return RunnerOutput(logits_RV, {layer: hidden.float() for layer, hidden in seen.items()})

    def move(self, moves: Sequence[SlotMove]) -> None:
        self._pool.move(moves)
