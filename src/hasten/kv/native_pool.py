"""The blocks of keys and values of every layer, in native memory."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.plan import BlockCopy, SlotMove
from hasten.kv.group import KvGroup
from hasten.ops.cpu.cpu import Cpu, Dtype
from hasten.ops.cpu.kv import NativeKv, kv_block_bytes


class NativeKvPool:
    """What ``KvPool`` is for torch: one pre-allocated pool; layers are added in the decoder's order."""

    def __init__(self, cpu: Cpu, groups: Sequence[KvGroup], num_blocks: int, block_size: int, dtype: Dtype) -> None:
        """Raises ``MemoryError``."""
        self.groups, self.num_blocks, self.block_size = tuple(groups), num_blocks, block_size
        self.kv = NativeKv(cpu, num_blocks, block_size)
        place = {layer: (g, group) for g, group in enumerate(groups) for layer in group.layers}
        for layer in sorted(place):
            g, group = place[layer]
            self.kv.add_layer(g, dtype, group.num_kv_heads, group.head_dim)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """In the order given: a block may be the source of one copy and the target of a later one."""
        for copy in copies:
            self.kv.copy(copy.group, copy.source, copy.target)

    def move(self, moves: Sequence[SlotMove]) -> None:
        """In the order given: a slot may be the source of one move and the target of a later one."""
        for move in moves:
            self.kv.move(move.group, move.source, move.target)


def native_block_bytes(cpu: Cpu, groups: Sequence[KvGroup], block_size: int, dtype: Dtype) -> int:
    """Bytes of one block of every group: keys, values and scales of all layers."""
    sizes = (len(g.layers) * kv_block_bytes(cpu, dtype, g.num_kv_heads, g.head_dim, block_size) for g in groups)
    return sum(sizes)
