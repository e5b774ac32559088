"""Runs an EAGLE-3 head over a pool of its own. It knows lines of hidden states and no request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, logits_indices
from hasten.kv.pool import KvPool
from hasten.layers.eagle import EagleHead
from hasten.runners.native_runner import NativeRunner
from hasten.runners.paged_context import PagedContext


class TorchEagleRunner:
    """The ``EagleRunner`` of a real head."""

    def __init__(self, head: EagleHead, pool: KvPool) -> None:
        self._head, self._pool = head, pool

    def fuse(self, states_TF: Tensor) -> Tensor:
        return self._head.fuse(states_TF)

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        head = self._head
        self._pool.copy(copies)
        ids_T = torch.tensor([token for row in rows for token in row.token_ids])
        positions_T = torch.tensor([position for row in rows for position in row.positions])
        context = PagedContext(head.ops, self._pool, rows, positions_T, head.rotary.at(positions_T))
        out_TE = head.run(hidden_TE, ids_T, positions_T, context)
        return out_TE, head.head(out_TE[logits_indices(rows)])

    def token_ids(self, columns: Tensor) -> Tensor:
        return self._head.target_ids[columns]


class NativeEagleRunner:
    """The ``EagleRunner`` of a head that was compiled: layer and vocabulary in one native call."""

    def __init__(self, head: EagleHead, runner: NativeRunner, max_step: int) -> None:
        """``max_step``: the most tokens of one call."""
        self._head, self._runner, self._max_step = head, runner, max_step

    def fuse(self, states_TF: Tensor) -> Tensor:
        return self._head.fuse(states_TF).float()

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[Tensor, Tensor]:
        self._runner.copy(copies)
        if len(hidden_TE) <= self._max_step:
            return self._runner.go_on(rows, hidden_TE)
        states, logits = [], []
        begin = 0
        for part in _parts(rows, self._max_step):
            state_TE, logits_RV = self._runner.go_on([part], hidden_TE[begin : begin + len(part.token_ids)])
            states.append(state_TE.clone())
            logits.append(logits_RV)
            begin += len(part.token_ids)
        return torch.cat(states), torch.cat(logits)

    def token_ids(self, columns: Tensor) -> Tensor:
        return self._head.target_ids[columns]


def _parts(rows: Sequence[RowPlan], most: int) -> Iterator[RowPlan]:
    """The rows in pieces of at most so many tokens."""
    for row in rows:
        for begin in range(0, len(row.token_ids), most):
            tokens = row.token_ids[begin : begin + most]
            last = begin + most >= len(row.token_ids)
            yield replace(row, start=row.start + begin, token_ids=tokens, num_logits=row.num_logits if last else 0)
