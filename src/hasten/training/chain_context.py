"""``ChainContext``: attention of draft chains that start at every position of a sequence at once.

It serves training-time test (Li et al., 2025, arXiv 2503.01840). The chain of anchor a attends to the same keys as it would alone.
These are the keys of the target's hidden states at positions up to a, and of its own earlier draft tokens, one per position::

    keys                          target states 0 1 2 3   draft 1 of 0 1 2 3   draft 2 of 0 1 2 3
    draft 2 of anchor 1 sees                    x x . .              . x . .              . x . .      (its position is 1 + 2)

Each call of ``attend`` computes the next draft token of all chains. Draft 0 runs on the target's hidden states.

Shape suffixes: T tokens, sequence after sequence · B sequences · A anchors, one per token of a sequence · S target states ·
K key/value heads · G query heads per key/value head · H = K·G query heads · D head dim · X queries, keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.layers.attention import prepare_qkv
from hasten.layers.norm import Norm
from hasten.layers.rotary import RotaryTables
from hasten.layers.spec import AttentionSpec
from hasten.ops.base import Ops


class ChainContext:
    """The ``AttentionContext`` of one layer. ``positions_T`` are the anchors' positions."""

    def __init__(self, ops: Ops, tables: RotaryTables, num_sequences: int, seq_len: int) -> None:
        self._ops, self._tables, self._shape = ops, tables, (num_sequences, seq_len)
        self.positions_T = torch.arange(seq_len).repeat(num_sequences)
        self._keys_values: list[tuple[Tensor, Tensor]] = []  # per draft token so far, both [B, A, K, D]

    def attend(self, layer: int, qkv_TX: Tensor, spec: AttentionSpec, q_norm: Norm | None, k_norm: Norm | None) -> Tensor:
        """See ``AttentionContext``. Keys and values keep their graph, for later draft tokens."""
        step, seq_len = len(self._keys_values), self._shape[1]
        rotary = None if spec.rotary is None else self._tables.at(self.positions_T + step)[spec.rotary]
        q_THD, k_TKD, v_TKD = prepare_qkv(self._ops, qkv_TX, spec, q_norm, k_norm, rotary)
        self._keys_values.append((k_TKD.reshape(*self._shape, *k_TKD.shape[1:]), v_TKD.reshape(*self._shape, *v_TKD.shape[1:])))
        q_BAKGD = q_THD.reshape(*self._shape, spec.num_kv_heads, -1, spec.head_dim)
        k_BSKD, v_BSKD = self._keys_values[0]
        first_draft = 1 if spec.window is None else max(1, step - spec.window + 1)
        drafts = self._keys_values[first_draft:]
        state_scores_BKGAS = torch.einsum("bakgd,bskd->bkgas", q_BAKGD, k_BSKD)
        state_scores_BKGAS = state_scores_BKGAS.masked_fill(~self._visible_states(step, spec.window), -torch.inf)
        draft_scores = [torch.einsum("bakgd,bakd->bkga", q_BAKGD, keys)[..., None] for keys, _ in drafts]
        probs = (torch.cat([state_scores_BKGAS, *draft_scores], dim=-1) * spec.scale).softmax(-1)
        out_BAKGD = torch.einsum("bkgas,bskd->bakgd", probs[..., :seq_len], v_BSKD)
        for probs_BKGA, (_, values) in zip(probs[..., seq_len:].unbind(-1), drafts, strict=True):
            out_BAKGD = out_BAKGD + torch.einsum("bkga,bakd->bakgd", probs_BKGA, values)
        return out_BAKGD.flatten(0, 1).flatten(1)

    def _visible_states(self, step: int, window: int | None) -> Tensor:
        """Return which target states draft token ``step`` of each anchor attends to, [A, S]."""
        anchor = torch.arange(self._shape[1])
        distance = anchor[:, None] - anchor[None, :]
        return distance >= 0 if window is None else (distance >= 0) & (distance + step < window)
