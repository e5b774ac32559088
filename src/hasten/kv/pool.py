"""The memory behind the blocks: a preallocated pool of keys and values, of tensors or native."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hasten.core.plan import BlockCopy, SlotMove
from hasten.kv.group import KvGroup
from hasten.ops.cpu.cpu import Cpu, Dtype
from hasten.ops.cpu.kv import NativeKv, kv_block_bytes


class BlockPool(Protocol):
    """What the pools have in common: blocks of a layer as bytes. Layers are those of the decoder."""

    groups: tuple[KvGroup, ...]

    def block_bytes(self, layer: int) -> int:
        """Return the bytes of one block of one layer."""
        ...

    def read_blocks(self, layer: int, blocks: Sequence[int], out: Tensor) -> None:
        """Copy blocks of a layer to ``out`` [block, byte], uint8. Any thread may call it, between two steps."""
        ...

    def write_blocks(self, layer: int, blocks: Sequence[int], data: Tensor) -> None:
        """Overwrite blocks of a layer with what ``read_blocks`` returned, as any thread may, too."""
        ...


class KvPool:
    """One tensor per KV group. The system provides its memory as blocks are first written."""

    def __init__(
        self, groups: Sequence[KvGroup], num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.groups, self.block_size = tuple(groups), block_size
        # [2 (keys, values), layer of the group, block, slot, kv_head, dim]. Zeroing would touch every memory page.
        with torch.inference_mode(False):  # blocks are written in any mode
            self._tensors = [
                torch.empty(2, len(g.layers), num_blocks, block_size, g.num_kv_heads, g.head_dim, dtype=dtype, device=device)
                for g in groups
            ]
        self._index = {layer: (g, i) for g, group in enumerate(groups) for i, layer in enumerate(group.layers)}

    def group_of(self, layer: int) -> int:
        return self._index[layer][0]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of one layer, each [block, slot, kv_head, dim]."""
        group, index = self._index[layer]
        return self._tensors[group][0, index], self._tensors[group][1, index]

    def block_bytes(self, layer: int) -> int:
        keys, values = self.layer(layer)
        return keys[:1].nbytes + values[:1].nbytes

    def read_blocks(self, layer: int, blocks: Sequence[int], out: Tensor) -> None:
        ids = torch.tensor(blocks, dtype=torch.int64, device=out.device)
        for part, tensor in zip(self._parts(layer, out), self.layer(layer), strict=True):
            part.copy_(tensor[ids])

    def write_blocks(self, layer: int, blocks: Sequence[int], data: Tensor) -> None:
        ids = torch.tensor(blocks, dtype=torch.int64, device=data.device)
        for part, tensor in zip(self._parts(layer, data), self.layer(layer), strict=True):
            tensor[ids] = part

    def _parts(self, layer: int, data: Tensor) -> tuple[Tensor, ...]:
        """Return the keys and the values, each [block, slot, kv_head, dim], in bytes of blocks."""
        keys, _ = self.layer(layer)
        return data.view(keys.dtype).view(len(data), 2, *keys.shape[1:]).unbind(1)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy blocks in the given order: a block may be the source of one copy and the target of a later one."""
        for copy in copies:
            tensor = self._tensors[copy.group]
            tensor[:, :, copy.target] = tensor[:, :, copy.source]

    def move(self, moves: Sequence[SlotMove]) -> None:
        """Move slots in the given order: a slot may be the source of one move and the target of a later one."""
        for move in moves:
            tensor, (block, slot), (to_block, to_slot) = self._tensors[move.group], move.source, move.target
            tensor[:, :, to_block, to_slot] = tensor[:, :, block, slot]


class NativeKvPool:
    """The pool of the native kernels; it has the layers in the decoder's order."""

    def __init__(self, cpu: Cpu, groups: Sequence[KvGroup], num_blocks: int, block_size: int, dtype: Dtype) -> None:
        """Raises ``MemoryError``."""
        self.groups = tuple(groups)
        self.kv = NativeKv(cpu, num_blocks, block_size)
        layers = sorted((layer, g) for g, group in enumerate(groups) for layer in group.layers)
        self._index = {layer: self.kv.add_layer(g, dtype, groups[g].num_kv_heads, groups[g].head_dim) for layer, g in layers}

    def block_bytes(self, layer: int) -> int:
        return self.kv.block_bytes[self._index[layer]]

    def read_blocks(self, layer: int, blocks: Sequence[int], out: Tensor) -> None:
        self.kv.read_blocks(self._index[layer], blocks, out)

    def write_blocks(self, layer: int, blocks: Sequence[int], data: Tensor) -> None:
        self.kv.write_blocks(self._index[layer], blocks, data)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """See ``KvPool.copy``."""
        for copy in copies:
            self.kv.copy_block(copy.group, copy.source, copy.target)

    def move(self, moves: Sequence[SlotMove]) -> None:
        """See ``KvPool.move``."""
        for move in moves:
            self.kv.move_token(move.group, move.source, move.target)


def native_block_bytes(cpu: Cpu, groups: Sequence[KvGroup], block_size: int, dtype: Dtype) -> int:
    """Return the bytes of one block of every group: keys, values and scales of all layers."""
    return sum(len(g.layers) * kv_block_bytes(cpu, dtype, g.num_kv_heads, g.head_dim, block_size) for g in groups)
