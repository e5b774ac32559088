"""``NativeKv``: the blocks of keys and values in native memory, in the layout that the kernels stream."""

from __future__ import annotations

import weakref

from hasten.ops.cpu.cpu import Cpu, Dtype


class NativeKv:
    """Blocks for every layer that is added. Memory is taken from the system as blocks are first written."""

    def __init__(self, cpu: Cpu, num_blocks: int, block_size: int) -> None:
        self.cpu, self.num_blocks, self.block_size = cpu, num_blocks, block_size
        self.num_groups = 0
        self.handle = cpu.library.kv_new(num_blocks, block_size)
        weakref.finalize(self, cpu.library.kv_free, self.handle)

    def add_layer(self, group: int, dtype: Dtype, num_kv_heads: int, head_dim: int) -> int:
        """The index by which a program names the layer. Raises ``MemoryError``."""
        index = int(self.cpu.library.kv_add_layer(self.handle, group, dtype, num_kv_heads, head_dim))
        if index < 0:
            raise MemoryError(f"no memory for {self.num_blocks} blocks of keys and values")
        self.num_groups = max(self.num_groups, group + 1)
        return index

    def copy(self, group: int, source: int, target: int) -> None:
        """Block ``source`` onto block ``target``, in every layer of the group."""
        self.cpu.library.kv_copy(self.handle, group, source, target)

    def move(self, group: int, source: tuple[int, int], target: tuple[int, int]) -> None:
        """The token in slot ``source`` (block, slot) to slot ``target``, in every layer of the group."""
        self.cpu.library.kv_move(self.handle, group, *source, *target)


def kv_block_bytes(cpu: Cpu, dtype: Dtype, num_kv_heads: int, head_dim: int, block_size: int) -> int:
    """Of one block of one layer: keys, values and scales, padding included."""
    return int(cpu.library.kv_block_bytes(dtype, num_kv_heads, head_dim, block_size))
