"""A KV group: layers that share geometry and one block table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvGroup:
    layers: tuple[int, ...]  # indices into the decoder's layers, ascending
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # a query at position p sees keys in (p - window, p]

    def block_bytes(self, block_size: int, element_bytes: int) -> int:
        """Bytes of one block: keys and values of all layers of the group."""
        return 2 * len(self.layers) * block_size * self.num_kv_heads * self.head_dim * element_bytes

    def max_blocks(self, num_tokens: int, block_size: int, max_num_batched_tokens: int) -> int:
        """The most blocks that one sequence of ``num_tokens`` ever holds, at ``max_num_batched_tokens`` a step."""
        every = -(-num_tokens // block_size)
        if self.window is None:
            return every
        return min(every, -(-(self.window - 1 + max_num_batched_tokens) // block_size) + 1)

    def first_live_block(self, num_computed: int, block_size: int) -> int:
        """The first block that the next query, at position ``num_computed``, can still see."""
        return 0 if self.window is None else max(0, num_computed - self.window + 1) // block_size
