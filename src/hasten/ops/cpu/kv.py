"""``NativeKv``: the paged KV cache in native memory, in the layout of the kernels."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.ops.cpu.cpu import Cpu, Dtype
from hasten.ops.cpu.limits import check_heads, check_option
from hasten.ops.cpu.native_tensor import address


class NativeKv:
    """Blocks for every layer that is added. The system provides their memory on first write."""

    def __init__(self, cpu: Cpu, num_blocks: int, block_size: int) -> None:
        """Raises ``InvalidOption`` for a block size that the kernels do not take."""
        check_option("block_size", block_size, cpu.library.limits.block_size)
        self.cpu, self.num_blocks = cpu, num_blocks
        self.block_size = block_size
        self.block_bytes: list[int] = []  # of each layer: keys, values and scales, with padding
        self.handle = cpu.library.new("kv", num_blocks, block_size)
        weakref.finalize(self, cpu.library.kv_free, self.handle)

    def add_layer(self, group: int, dtype: Dtype, num_kv_heads: int, head_dim: int) -> int:
        """Add a layer and return its index.

        Raises ``MemoryError``, or ``UnsupportedModel`` for heads that the kernels do not take.
        """
        check_heads(self.cpu.library.limits, head_dim)
        try:
            layer = int(self.cpu.library.kv_add_layer(self.handle, group, dtype, num_kv_heads, head_dim))
        except MemoryError as error:
            raise MemoryError(f"no memory for {self.num_blocks} blocks of keys and values") from error
        self.block_bytes.append(kv_block_bytes(self.cpu, dtype, num_kv_heads, head_dim, self.block_size))
        return layer

    def copy_block(self, group: int, source: int, target: int) -> None:
        """Copy block ``source`` to block ``target``, in every layer of the group."""
        self.cpu.library.kv_copy_block(self.handle, group, source, target)

    def move_token(self, group: int, source: tuple[int, int], target: tuple[int, int]) -> None:
        """Move a token from slot ``source`` (block, slot) to slot ``target``, in every layer of the group."""
        self.cpu.library.kv_move_token(self.handle, group, *source, *target)

    def read_blocks(self, layer: int, blocks: Sequence[int], out: Tensor) -> None:
        """Copy whole blocks of a layer to ``out`` [block, byte], uint8, in the layout of the kernels."""
        ids = array("q", blocks)
        target = address(out, torch.uint8, len(ids), self.block_bytes[layer])
        self.cpu.library.kv_read_blocks(self.handle, layer, ids.buffer_info()[0], len(ids), target)

    def write_blocks(self, layer: int, blocks: Sequence[int], data: Tensor) -> None:
        """Overwrite whole blocks of a layer with ``data`` [block, byte], uint8, as ``read_blocks`` returns it."""
        ids = array("q", blocks)
        source = address(data, torch.uint8, len(ids), self.block_bytes[layer])
        self.cpu.library.kv_write_blocks(self.handle, layer, ids.buffer_info()[0], len(ids), source)


def kv_block_bytes(cpu: Cpu, dtype: Dtype, num_kv_heads: int, head_dim: int, block_size: int) -> int:
    """Return the bytes of one block of one layer: keys, values and scales, with padding.

    Raises ``InvalidOption`` for a block size, and ``UnsupportedModel`` for heads, that the kernels do not take.
    """
    check_heads(cpu.library.limits, head_dim)
    check_option("block_size", block_size, cpu.library.limits.block_size)
    return int(cpu.library.kv_block_bytes(dtype, num_kv_heads, head_dim, block_size))
