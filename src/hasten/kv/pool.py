"""The tensors behind the blocks: one pre-allocated pool of keys and values per KV group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, SlotMove
from hasten.kv.group import KvGroup


class KvPool:
    """Memory is taken from the system as blocks are first written, never more than was asked for."""

    def __init__(
        self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.groups, self.num_blocks, self.block_size = tuple(groups), num_blocks, block_size
        # Per group [2 (keys, values), layer of the group, block, slot, kv_head, dim]. Not zeroed: that would touch every page,
        # and no slot is read before it is written.
        self._tensors = [
            torch.empty(2, len(g.layers), num_blocks, block_size, g.num_kv_heads, g.head_dim, dtype=dtype, device=device)
            for g in groups
        ]
        self._place = {layer: (g, i) for g, group in enumerate(groups) for i, layer in enumerate(group.layers)}

    def group_of(self, layer: int) -> int:
        return self._place[layer][0]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each [block, slot, kv_head, dim]."""
        group, index = self._place[layer]
        return self._tensors[group][0, index], self._tensors[group][1, index]

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """In the order given: a block may be the source of one copy and the target of a later one."""
        for copy in copies:
            tensor = self._tensors[copy.group]
            tensor[:, :, copy.target] = tensor[:, :, copy.source]

    def move(self, moves: Sequence[SlotMove]) -> None:
        """In the order given: a slot may be the source of one move and the target of a later one."""
        for move in moves:
            tensor, (block, slot), (to_block, to_slot) = self._tensors[move.group], move.source, move.target
            tensor[:, :, to_block, to_slot] = tensor[:, :, block, slot]
