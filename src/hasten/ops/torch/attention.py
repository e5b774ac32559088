"""Dense and paged attention in PyTorch: the reference, one row after the other.

Where the blocks of a row are consecutive in the pool, its keys and values are a slice of it; else they are gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.ops.base import AttentionMask, PagedKv, RowView


def attend_dense(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: AttentionMask) -> Tensor:
    """See ``Ops.attend_dense``."""
    num_tokens = len(q_THD)
    is_windowed = mask.window is not None and mask.window < num_tokens
    visible = _causal_mask(num_tokens, num_tokens, mask.window, q_THD.device) if is_windowed else None
    return _restore_nan(_attend(q_THD, k_TKD, v_TKD, mask.scale, visible, is_causal=not is_windowed), q_THD, k_TKD)


def attend_paged(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv, mask: AttentionMask) -> Tensor:
    """See ``Ops.attend_paged``."""
    write_paged(k_TKD, v_TKD, kv)
    k_NKD, v_NKD = kv.k_BSKD.flatten(0, 1), kv.v_BSKD.flatten(0, 1)
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    for row in kv.rows:
        q_tHD = q_THD[row.begin : row.end]
        k_nKD = _row_slots(kv.k_BSKD, k_NKD, row, mask.window).to(q_THD.dtype)
        v_nKD = _row_slots(kv.v_BSKD, v_NKD, row, mask.window).to(q_THD.dtype)
        visible = _row_mask(row, mask.window, len(k_nKD), q_THD.device)
        is_causal = visible is None and len(q_tHD) > 1
        out_THD[row.begin : row.end] = _attend(q_tHD, k_nKD, v_nKD, mask.scale, visible, is_causal=is_causal)
    return _restore_nan(out_THD, q_THD, k_TKD)


def write_paged(k_TKD: Tensor, v_TKD: Tensor, kv: PagedKv) -> None:
    """See ``Ops.write_paged``."""
    for pool_BSKD, new_TKD in ((kv.k_BSKD, k_TKD), (kv.v_BSKD, v_TKD)):
        pool_BSKD.flatten(0, 1).index_copy_(0, kv.slots_T, new_TKD.to(pool_BSKD.dtype))


def _attend(q_tHD: Tensor, k_nKD: Tensor, v_nKD: Tensor, scale: float, visible: Tensor | None, *, is_causal: bool) -> Tensor:
    q_1HtD, k_1KnD, v_1KnD = (x.transpose(0, 1)[None] for x in (q_tHD, k_nKD, v_nKD))
    grouped = q_tHD.shape[1] != k_nKD.shape[1]
    out_1HtD = F.scaled_dot_product_attention(
        q_1HtD, k_1KnD, v_1KnD, attn_mask=visible, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )
    return out_1HtD[0].transpose(0, 1)


def _restore_nan(out_THD: Tensor, q_THD: Tensor, k_TKD: Tensor) -> Tensor:
    """Return the output with NaN for queries whose scores are all NaN.

    PyTorch takes such a query for one that sees no key, and returns 0. Then the query is not finite, or no key that it sees is,
    its own included.
    """
    num_tokens, num_kv_heads, head_dim = k_TKD.shape
    out_TKGD = torch.add(out_THD, q_THD, alpha=0).view(num_tokens, num_kv_heads, -1, head_dim)
    return torch.add(out_TKGD, k_TKD[:, :, None], alpha=0).flatten(1, 2)


def _row_slots(pool_BSKD: Tensor, pool_NKD: Tensor, row: RowView, window: int | None) -> Tensor:
    """Return keys or values of the row, from the oldest that a query sees to the last token. [n, K, D]"""
    size = pool_BSKD.shape[1]
    offset = row.first_block * size
    start = 0 if window is None else max(0, row.start - window + 1 - offset)
    stop = row.start + row.end - row.begin - offset
    if row.contiguous:
        base = int(row.blocks[0]) * size
        return pool_NKD[base + start : base + stop]
    return pool_BSKD.index_select(0, row.blocks).flatten(0, 1)[start:stop]


def _row_mask(row: RowView, window: int | None, num_keys: int, device: torch.device) -> Tensor | None:
    """Return which keys each query sees [t, n]; None where that is plain causal attention, or all keys."""
    num_queries = row.end - row.begin
    if row.tree_tt is None:
        is_windowed = window is not None and window < row.start + num_queries
        if num_queries == 1 or (not is_windowed and num_queries == num_keys):
            return None
        return _causal_mask(num_queries, num_keys, window, device)
    # The window counts positions, not slots: a token has the position of its depth in the tree.
    earlier = torch.arange(num_keys - num_queries, dtype=torch.int64, device=device)
    visible = torch.cat((row.tree_tt.new_ones(num_queries, len(earlier)), row.tree_tt), dim=1)
    if window is None:
        return visible
    position = len(earlier) + row.tree_tt.sum(dim=1) - 1
    return visible & (torch.cat((earlier, position)) > position[:, None] - window)


def _causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return whether each query sees each key; the last query and the last key are one token. [t, n]"""
    query = torch.arange(num_keys - num_queries, num_keys, dtype=torch.int64, device=device)[:, None]
    key = torch.arange(num_keys, dtype=torch.int64, device=device)[None]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
