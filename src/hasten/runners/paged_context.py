"""``PagedContext``: the attention of one step, over the KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from hasten.core.plan import RowPlan
from hasten.kv.pool import KvPool
from hasten.layers.attention import prepare_qkv
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.layers.spec import AttentionSpec
from hasten.ops.base import Ops, PagedKv, RowView


class PagedContext:
    """The ``AttentionContext`` and ``FillKvContext`` of the rows of one step."""

    def __init__(self, ops: Ops, pool: KvPool, rows: Sequence[RowPlan], rotary: RotaryTables) -> None:
        self._ops, self._pool = ops, pool
        self.positions_T = torch.tensor([position for row in rows for position in row.positions], dtype=torch.int64, device="cpu")
        self._cos_sin = rotary.at(self.positions_T)
        begins = list(accumulate((len(row.token_ids) for row in rows), initial=0))  # and the end
        trees = [_tree_mask(row) for row in rows]
        self._slots_T = [_slots(rows, group, pool.block_size) for group in range(len(pool.groups))]
        self._rows = [
            tuple(_row_view(row, group, begin, tree_tt) for row, begin, tree_tt in zip(rows, begins, trees, strict=False))
            for group in range(len(pool.groups))
        ]

    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        q_THD, k_TKD, v_TKD = self._prepare(qkv_TX, spec, q_norm, k_norm)
        return self._ops.attend_paged(q_THD, k_TKD, v_TKD, self._kv(layer), spec.mask).flatten(1)

    def fill_kv(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> None:
        _, k_TKD, v_TKD = self._prepare(qkv_TX, spec, q_norm, k_norm)
        self._ops.write_paged(k_TKD, v_TKD, self._kv(layer))

    def _prepare(
        self, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        cos_sin = None if spec.rotary is None else self._cos_sin[spec.rotary]
        return prepare_qkv(self._ops, qkv_TX, spec, q_norm, k_norm, cos_sin)

    def _kv(self, layer: int) -> PagedKv:
        group = self._pool.group_of(layer)
        return PagedKv(*self._pool.layer(layer), self._slots_T[group], self._rows[group])


def _tree_mask(row: RowPlan) -> Tensor | None:
    """Return which tokens each token of the row attends to [token, token]; None without a tree."""
    if not row.tree:
        return None
    assert len(row.token_ids) <= 64, "a row with a tree has at most 64 tokens"
    visible = [[bool(mask >> token & 1) for token in range(len(row.token_ids))] for mask in row.attention_bitmasks]
    return torch.tensor(visible, dtype=torch.bool, device="cpu")


def _row_view(row: RowPlan, group: int, begin: int, tree_tt: Tensor | None) -> RowView:
    table = row.block_tables[group]
    live = [block for block in table if block is not None]
    contiguous = live[-1] - live[0] == len(live) - 1 and all(b - a == 1 for a, b in pairwise(live))
    end, first_block = begin + len(row.token_ids), len(table) - len(live)
    live_B = torch.tensor(live, dtype=torch.int64, device="cpu")
    return RowView(begin, end, row.start, live_B, first_block, contiguous, tree_tt)


def _slots(rows: Sequence[RowPlan], group: int, block_size: int) -> Tensor:
    slots: list[int] = []
    for row in rows:
        table = row.block_tables[group]
        for position in range(row.start, row.stop):
            block = table[position // block_size]
            assert block is not None, "a token to compute has no block"
            slots.append(block * block_size + position % block_size)
    return torch.tensor(slots, dtype=torch.int64, device="cpu")
