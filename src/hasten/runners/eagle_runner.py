"""The runners of an EAGLE-3 head over a KV cache of its own: eager PyTorch and native.

Shape suffixes: T tokens · R rows of logits · A fused layers · E hidden size · D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, RowPlan, StepView, logits_indices
from hasten.kv.pool import KvPool
from hasten.layers.eagle import EagleHead
from hasten.runners.native_runner import NativeRunner
from hasten.runners.paged_context import PagedContext


class TorchEagleRunner:
    """The ``EagleRunner`` of a head in eager PyTorch."""

    def __init__(self, head: EagleHead, pool: KvPool) -> None:
        self._head, self._pool = head, pool

    def fuse(self, states_TAE: Tensor) -> Tensor:
        return self._head.fuse(states_TAE)

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[StepView, Tensor]:
        head = self._head
        self._pool.copy(copies)
        ids_T = torch.tensor([token for row in rows for token in row.token_ids], dtype=torch.int64, device="cpu")
        context = PagedContext(head.ops, self._pool, rows, head.rotary)
        out_TE = head.run(hidden_TE, ids_T, context.positions_T, context)
        return StepView(out_TE), head.head(out_TE[logits_indices(rows)])

    def token_ids(self, columns: Tensor) -> Tensor:
        return self._head.target_ids[columns]


class NativeEagleRunner:
    """The ``EagleRunner`` of a compiled head: one native call for its layer and its lm_head."""

    def __init__(self, head: EagleHead, runner: NativeRunner, max_num_batched_tokens: int) -> None:
        self._head, self._runner, self._max_num_batched_tokens = head, runner, max_num_batched_tokens

    def fuse(self, states_TAE: Tensor) -> Tensor:
        return self._head.fuse(states_TAE).float()

    def run(self, rows: Sequence[RowPlan], copies: Sequence[BlockCopy], hidden_TE: Tensor) -> tuple[StepView, Tensor]:
        self._runner.copy(copies)
        if len(hidden_TE) <= self._max_num_batched_tokens:
            return self._runner.run_eagle(rows, hidden_TE)
        chunks = list(_chunks(rows, self._max_num_batched_tokens))
        hidden, logits = [], []
        for row, row_TE in zip(chunks, torch.split(hidden_TE, [len(row.token_ids) for row in chunks]), strict=True):
            out_TE, logits_RD = self._runner.run_eagle([row], row_TE)
            hidden.append(out_TE.clone())
            logits.append(logits_RD)
        return StepView(torch.cat(hidden)), torch.cat(logits)

    def token_ids(self, columns: Tensor) -> Tensor:
        return self._head.target_ids[columns]


def _chunks(rows: Sequence[RowPlan], max_tokens: int) -> Iterator[RowPlan]:
    """Split the rows into rows of at most ``max_tokens`` tokens."""
    for row in rows:
        for begin in range(0, len(row.token_ids), max_tokens):
            end = begin + max_tokens
            num_logits = row.num_logits if end >= len(row.token_ids) else 0
            yield replace(row, start=row.start + begin, token_ids=row.token_ids[begin:end], num_logits=num_logits)
