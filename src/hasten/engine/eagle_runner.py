"""Runs an EAGLE-3 head over a pool of its own. It knows lines of hidden states and no request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan
from hasten.engine.context import PagedContext
from hasten.kv.pool import KvPool
from hasten.layers.eagle import EagleHead


class PagedEagle:
    """The ``EagleRunner`` of a real head."""

    def __init__(self, head: EagleHead, pool: KvPool) -> None:
        self._head, self._pool = head, pool

    def fuse(self, states_TF: Tensor) -> Tensor:
        return self._head.fuse(states_TF)

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> Tensor:
        head = self._head
        self._pool.copy(copies)
        ids_T = torch.tensor([token for row in rows for token in row.token_ids])
        positions_T = torch.tensor([position for row in rows for position in row.positions])
        context = PagedContext(head.ops, self._pool, rows, positions_T, head.rotary.at(positions_T))
        return head.run(hidden_TE, ids_T, positions_T, context)

    def logits(self, hidden_RE: Tensor) -> Tensor:
        return self._head.head(hidden_RE)

    def token_ids(self, columns: Tensor) -> Tensor:
        return self._head.target_ids[columns]
