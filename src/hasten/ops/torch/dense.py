"""Causal attention of one sequence over itself, without a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.ops.base import AttentionMask


def attend_dense(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: AttentionMask) -> Tensor:
    """softmax(scale · q kᵀ) v over the keys that ``mask`` lets each query see; query heads share K/V heads in groups. [T, H, D]"""
    num_tokens, num_heads, _ = q_THD.shape
    windowed = mask.window is not None and mask.window < num_tokens
    out_HTD = F.scaled_dot_product_attention(
        q_THD.transpose(0, 1)[None],
        k_TKD.transpose(0, 1)[None],
        v_TKD.transpose(0, 1)[None],
        attn_mask=_window_mask(num_tokens, mask.window, q_THD.device) if windowed and mask.window is not None else None,
        is_causal=not windowed,
        scale=mask.scale,
        enable_gqa=k_TKD.shape[1] != num_heads,
    )[0]
    return out_HTD.transpose(0, 1)


def _window_mask(num_tokens: int, window: int, device: torch.device) -> Tensor:
    """True where query q sees key k: q - window < k <= q. [query, key]"""
    position = torch.arange(num_tokens, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
