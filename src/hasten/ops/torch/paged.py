"""Attention over the paged pool: the reference, one row after the other.

Where a row's blocks lie side by side in the pool, its keys and values are a slice and nothing is copied; else they are gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.ops.base import AttentionMask, PagedKv, RowView


def attend_paged(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv, mask: AttentionMask) -> Tensor:
    """See ``Ops.attend_paged``."""
    write_paged(k_TKD, v_TKD, kv)
    k_NKD, v_NKD = kv.k_BSKD.flatten(0, 1), kv.v_BSKD.flatten(0, 1)
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    for row in kv.rows:
        q_1HtD = q_THD[row.begin : row.end].transpose(0, 1)[None]
        keys = _keys(kv.k_BSKD, k_NKD, row, mask, q_1HtD.shape[2])
        values = _keys(kv.v_BSKD, v_NKD, row, mask, q_1HtD.shape[2])
        visible = _visible(row, mask, keys.shape[2], q_THD.device)
        causal = visible is None and row.end - row.begin > 1
        attended = F.scaled_dot_product_attention(
            q_1HtD,
            keys.to(q_THD.dtype),
            values.to(q_THD.dtype),
            attn_mask=visible,
            is_causal=causal,
            scale=mask.scale,
            enable_gqa=q_1HtD.shape[1] != keys.shape[1],
        )
        out_THD[row.begin : row.end] = attended[0].transpose(0, 1)
    return out_THD


def write_paged(k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv) -> None:
    """See ``Ops.write_paged``."""
    for pool_BSKD, new_TKD in ((kv.k_BSKD, k_TKD), (kv.v_BSKD, v_TKD)):
        pool_BSKD.flatten(0, 1).index_copy_(0, kv.slots_T, new_TKD.to(pool_BSKD.dtype))


def _first_position(row: RowView, mask: AttentionMask, block_size: int) -> int:
    """The oldest position that any query of the row sees; never before the blocks that are left."""
    oldest = 0 if mask.window is None else max(0, row.start - mask.window + 1)
    return max(oldest, row.first_block * block_size)


def _keys(pool_BSKD: Tensor, pool_NKD: Tensor, row: RowView, mask: AttentionMask, num_queries: int) -> Tensor:
    """The row's keys or values from ``_first_position`` up to its last token. [1, K, n, D]"""
    size = pool_BSKD.shape[1]
    skip = _first_position(row, mask, size) - row.first_block * size
    stop = row.start + num_queries - row.first_block * size
    if row.contiguous:
        base = int(row.blocks[0]) * size
        picked = pool_NKD[base + skip : base + stop]
    else:
        picked = pool_BSKD.index_select(0, row.blocks).flatten(0, 1)[skip:stop]
    return picked.transpose(0, 1)[None]


def _visible(row: RowView, mask: AttentionMask, num_keys: int, device: torch.device) -> Tensor | None:
    """Which keys each query sees [t, n]; None where plain causal attention, or all keys, is the same."""
    if row.tree_tt is not None:
        return _visible_in_tree(row.tree_tt, row.start, mask, num_keys)
    num_queries = row.end - row.begin
    inside = mask.window is None or row.start + num_queries <= mask.window
    if num_queries == 1 or (inside and num_queries == num_keys):
        return None
    stop = row.start + num_queries
    query = torch.arange(row.start, stop, device=device)[:, None]
    key = torch.arange(stop - num_keys, stop, device=device)[None]
    visible = key <= query
    return visible if mask.window is None else visible & (key > query - mask.window)


def _visible_in_tree(tree_tt: Tensor, start: int, mask: AttentionMask, num_keys: int) -> Tensor:
    """The same for a row that branches: the window is counted in the positions that tokens stand at, not in slots."""
    num_queries = tree_tt.shape[0]
    before = torch.arange(start + num_queries - num_keys, start, device=tree_tt.device)
    visible = torch.cat((tree_tt.new_ones(num_queries, len(before)), tree_tt), dim=1)
    if mask.window is None:
        return visible
    own = start + tree_tt.sum(dim=1) - 1
    return visible & (torch.cat((before, own)) > own[:, None] - mask.window)
