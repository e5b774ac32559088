"""Runs a plan on a decoder: integers in, logits out. It knows no request, no setting and no text."""

from __future__ import annotations

import torch

from hasten.core.plan import RunnerOutput, StepPlan
from hasten.engine.context import PagedContext
from hasten.kv.pool import KvPool
from hasten.models.decoder import Decoder


class DecoderRunner:
    """The ``Runner`` of a real model: one decoder over one pool, eager torch."""

    def __init__(self, decoder: Decoder, pool: KvPool) -> None:
        self._decoder, self._pool = decoder, pool

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> RunnerOutput:
        decoder = self._decoder
        self._pool.copy(plan.copies)
        ids_T = torch.tensor([token for row in plan.rows for token in row.token_ids])
        positions_T = torch.tensor([position for row in plan.rows for position in range(row.start, row.stop)])
        context = PagedContext(decoder.ops, self._pool, plan.rows, positions_T, decoder.rotary.at(positions_T))
        hidden_TE = decoder.run(decoder.embed(ids_T), positions_T, context)
        wanted: list[int] = []
        end = 0
        for row in plan.rows:
            end += len(row.token_ids)
            wanted += range(end - row.num_logits, end)
        return RunnerOutput(decoder.head(hidden_TE[torch.tensor(wanted, dtype=torch.long)]))
