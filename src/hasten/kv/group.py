"""``KvGroup``: layers that have the same KV geometry and share a block table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvGroup:
    layers: tuple[int, ...]  # indices of the decoder's layers, ascending
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # sliding window: position p attends to (p - window, p]

    def block_bytes(self, block_size: int, element_bytes: int) -> int:
        """Return the bytes of one block: keys and values of all layers of the group."""
        return 2 * len(self.layers) * block_size * self.num_kv_heads * self.head_dim * element_bytes

    def max_blocks(self, num_tokens: int, block_size: int, max_num_batched_tokens: int) -> int:
        """Return the peak number of blocks of a sequence, at ``max_num_batched_tokens`` per step."""
        num_blocks = -(-num_tokens // block_size)
        if self.window is None:
            return num_blocks
        return min(num_blocks, -(-(self.window - 1 + max_num_batched_tokens) // block_size) + 1)

    def live_blocks(self, num_blocks: int, block_size: int) -> range:
        """Return which of the first ``num_blocks`` blocks the token after them attends to."""
        return range(min(num_blocks, self.first_live_block(num_blocks * block_size, block_size)), num_blocks)

    def first_live_block(self, num_computed_tokens: int, block_size: int) -> int:
        """Return the first block that the token at position ``num_computed_tokens`` attends to."""
        return 0 if self.window is None else max(0, num_computed_tokens - self.window + 1) // block_size
