"""What attention sees in a step of the engine: this step's rows over the paged pool."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hasten.core.plan import RowPlan
from hasten.kv.pool import KvPool
from hasten.layers.norm import Norm
from hasten.layers.qkv import prepare_qkv
from hasten.layers.rotary import CosSin
from hasten.layers.spec import AttentionSpec, RotarySpec
from hasten.ops.base import Ops, PagedKv, RowView


class PagedContext:
    """The ``AttentionContext`` that the runner passes to the decoder; one per step."""

    def __init__(
        self, ops: Ops, pool: KvPool, rows: Sequence[RowPlan], positions_T: Tensor, cos_sin: dict[RotarySpec, CosSin]
    ) -> None:
        self._ops, self._pool, self._cos_sin = ops, pool, cos_sin
        trees = [_tree(row) for row in rows]
        views = [
            [_view(row, group, begin, tree_tt) for (row, begin), tree_tt in zip(_begins(rows), trees, strict=True)]
            for group in range(len(pool.groups))
        ]
        self._rows = [tuple(group) for group in views]
        self._slots_T = [_slots(rows, group, pool.block_size, positions_T.device) for group in range(len(pool.groups))]

    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        rotary = self._cos_sin[spec.rotary] if spec.rotary else None
        q_THD, k_TKD, v_TKD = prepare_qkv(self._ops, qkv_TX, spec, q_norm, k_norm, rotary)
        group = self._pool.group_of(layer)
        k_BSKD, v_BSKD = self._pool.layer(layer)
        kv = PagedKv(k_BSKD, v_BSKD, self._slots_T[group], self._rows[group])
        return self._ops.attend_paged(q_THD, k_TKD, v_TKD, kv, spec.mask).flatten(1)

    def fill(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> None:
        """See ``FillContext``."""
        rotary = self._cos_sin[spec.rotary] if spec.rotary else None
        _, k_TKD, v_TKD = prepare_qkv(self._ops, qkv_TX, spec, q_norm, k_norm, rotary)
        group = self._pool.group_of(layer)
        k_BSKD, v_BSKD = self._pool.layer(layer)
        self._ops.write_paged(k_TKD, v_TKD, PagedKv(k_BSKD, v_BSKD, self._slots_T[group], self._rows[group]))


def _begins(rows: Sequence[RowPlan]) -> list[tuple[RowPlan, int]]:
    """Each row with the index of its first token in the step."""
    begins, begin = [], 0
    for row in rows:
        begins.append((row, begin))
        begin += len(row.token_ids)
    return begins


def _tree(row: RowPlan) -> Tensor | None:
    """Whether one token of the row sees another [token, token]; None if it does not branch."""
    if not row.tree:
        return None
    assert len(row.token_ids) <= 64, "a row that branches is one word wide"
    return torch.tensor([[bool(view >> token & 1) for token in range(len(row.token_ids))] for view in row.views])


def _view(row: RowPlan, group: int, begin: int, tree_tt: Tensor | None) -> RowView:
    table = row.block_tables[group]
    live = [block for block in table if block is not None]
    first = len(table) - len(live)
    contiguous = live[-1] - live[0] == len(live) - 1 and all(b - a == 1 for a, b in pairwise(live))
    return RowView(begin, begin + len(row.token_ids), row.start, torch.tensor(live), first, contiguous, tree_tt)


def _slots(rows: Sequence[RowPlan], group: int, block_size: int, device: torch.device) -> Tensor:
    slots: list[int] = []
    for row in rows:
        table = row.block_tables[group]
        for place in range(row.start, row.stop):
            block = table[place // block_size]
            assert block is not None, "a token to compute has no block"
            slots.append(block * block_size + place % block_size)
    return torch.tensor(slots, device=device)
