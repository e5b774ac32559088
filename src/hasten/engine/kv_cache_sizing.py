"""The size of the KV cache: groups of layers, number of blocks, and context length that fits.

A requested size that does not fit is reduced with a warning that names both numbers. If nothing fits, an error is raised.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import CapacityError, InvalidOption
from hasten.core.memory_size import parse_bytes
from hasten.kv.group import KvGroup
from hasten.models.spec import DecoderSpec
from hasten.ops.cpu.memory import available_bytes, format_bytes

# Of the memory that is free after the weights are loaded. Activations and other processes need the rest.
DEFAULT_SHARE = 0.25
# The allocator lists all blocks. So many hold more tokens than the memory of any machine, but for the tiniest models.
MAX_BLOCKS = 1 << 22


class KvCacheWarning(UserWarning):
    """A requested size was reduced so that it fits; the message names both numbers."""


@dataclass(frozen=True, slots=True)
class KvCacheSizing:
    num_blocks: int  # per group
    max_model_len: int  # tokens
    kv_bytes: int  # of all groups


def kv_groups(spec: DecoderSpec) -> tuple[KvGroup, ...]:
    """Group layers by window, kv heads and head dim, in the order of the groups' first layers."""
    layers: dict[tuple[int | None, int, int], list[int]] = {}
    for index, layer in enumerate(spec.layers):
        attention = layer.attention
        layers.setdefault((attention.window, attention.num_kv_heads, attention.head_dim), []).append(index)
    return tuple(KvGroup(tuple(indices), heads, dim, window) for (window, heads, dim), indices in layers.items())


def size_kv_cache(
    groups: Sequence[KvGroup],
    *,
    block_size: int,
    block_bytes: int,
    max_positions: int,
    max_model_len: int | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_cache_memory: int | str | None,
    reserved_bytes: int = 0,
) -> KvCacheSizing:
    """Return the largest KV cache for ``kv_cache_memory`` (None: a quarter of the free memory).

    ``block_bytes`` is the size of one block in all groups. ``reserved_bytes`` are not free: drafters fill them while they run. By
    default ``max_num_seqs`` full contexts bound the size.
    Raises ``InvalidOption`` for values out of range and ``CapacityError`` if not even one block fits.
    """
    if max_model_len is not None and not 1 <= max_model_len <= max_positions:
        raise InvalidOption(
            "max_model_len is out of range",
            got=max_model_len,
            allowed=f"1 to {max_positions}, the positions of this model",
            remedy="Leave it out for the longest context that fits",
        )
    length = max_model_len or max_positions
    blocks_per_context = max(group.max_blocks(length, block_size, max_num_batched_tokens) for group in groups)
    free = max(0, available_bytes() - reserved_bytes)
    num_blocks, source = _affordable_blocks(free, block_bytes, kv_cache_memory)
    needed = blocks_per_context * max_num_seqs if kv_cache_memory is None else MAX_BLOCKS
    num_blocks = min(num_blocks, needed, MAX_BLOCKS)
    if num_blocks < 1:
        raise CapacityError(
            "not even one KV block fits in memory",
            got=source,
            allowed=f"at least {format_bytes(block_bytes)}, one block of {block_size} tokens",
            remedy="Free memory, give more of it with kv_cache_memory, or lower block_size",
        )
    if num_blocks < blocks_per_context:
        fitting = num_blocks * block_size
        warnings.warn(
            f"a context of {length} tokens needs {format_bytes(blocks_per_context * block_bytes)} of KV cache and {source} hold "
            f"{format_bytes(num_blocks * block_bytes)}: max_model_len is reduced from {length} to {fitting}",
            KvCacheWarning,
            stacklevel=3,
        )
        length = fitting
    return KvCacheSizing(num_blocks, length, num_blocks * block_bytes)


def _affordable_blocks(free: int, block_bytes: int, kv_cache_memory: int | str | None) -> tuple[int, str]:
    """Return how many blocks fit, and into what."""
    if kv_cache_memory is None:
        return int(free * DEFAULT_SHARE) // block_bytes, f"{DEFAULT_SHARE:.0%} of the {format_bytes(free)} that are free"
    requested = parse_bytes(kv_cache_memory, "kv_cache_memory")
    num_blocks = min(requested, free) // block_bytes
    if requested > free:
        warnings.warn(
            f"kv_cache_memory={format_bytes(requested)} is more than the {format_bytes(free)} that are free: "
            f"the KV pool has {format_bytes(num_blocks * block_bytes)}",
            KvCacheWarning,
            stacklevel=4,
        )
    return num_blocks, f"kv_cache_memory={format_bytes(requested)}"
