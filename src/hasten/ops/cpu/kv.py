"""``NativeKv``: the paged KV cache in native memory, in the layout of the kernels."""

from __future__ import annotations

import weakref

from hasten.ops.cpu.cpu import Cpu, Dtype
from hasten.ops.cpu.limits import check_heads, check_option


class NativeKv:
    """Blocks for every layer that is added. The system provides their memory on first write."""

    def __init__(self, cpu: Cpu, num_blocks: int, block_size: int) -> None:
        """Raises ``InvalidOption`` for a block size that the kernels do not take."""
        check_option("block_size", block_size, cpu.library.limits.block_size)
        self.cpu, self.num_blocks = cpu, num_blocks
        self.handle = cpu.library.new("kv", num_blocks, block_size)
        weakref.finalize(self, cpu.library.kv_free, self.handle)

    def add_layer(self, group: int, dtype: Dtype, num_kv_heads: int, head_dim: int) -> int:
        """Add a layer and return its index.

        Raises ``MemoryError``, or ``UnsupportedModel`` for heads that the kernels do not take.
        """
        check_heads(self.cpu.library.limits, head_dim)
        try:
            return int(self.cpu.library.kv_add_layer(self.handle, group, dtype, num_kv_heads, head_dim))
        except MemoryError as error:
            raise MemoryError(f"no memory for {self.num_blocks} blocks of keys and values") from error

    def copy_block(self, group: int, source: int, target: int) -> None:
        """Copy block ``source`` to block ``target``, in every layer of the group."""
        self.cpu.library.kv_copy_block(self.handle, group, source, target)

    def move_token(self, group: int, source: tuple[int, int], target: tuple[int, int]) -> None:
        """Move a token from slot ``source`` (block, slot) to slot ``target``, in every layer of the group."""
        self.cpu.library.kv_move_token(self.handle, group, *source, *target)


def kv_block_bytes(cpu: Cpu, dtype: Dtype, num_kv_heads: int, head_dim: int, block_size: int) -> int:
    """Return the bytes of one block of one layer: keys, values and scales, with padding.

    Raises ``InvalidOption`` for a block size, and ``UnsupportedModel`` for heads, that the kernels do not take.
    """
    check_heads(cpu.library.limits, head_dim)
    check_option("block_size", block_size, cpu.library.limits.block_size)
    return int(cpu.library.kv_block_bytes(dtype, num_kv_heads, head_dim, block_size))
