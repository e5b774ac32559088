"""Auto-fit: how many KV blocks there are, and how long a sequence may get, on this machine.

What was asked for and does not fit is reduced with a warning that names both numbers; what cannot run at all is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import CapacityError, InvalidOption
from hasten.engine.memory import available_bytes, format_bytes, parse_bytes
from hasten.kv.group import KvGroup

# Of the memory that is free after the weights are loaded; the rest is for activations and for everyone else.
DEFAULT_SHARE = 0.5


class KvCacheWarning(UserWarning):
    """Something that was asked for was reduced so that it fits; the message names both numbers."""


@dataclass(frozen=True, slots=True)
class KvCacheSizing:
    num_blocks: int  # per group
    max_model_len: int  # tokens
    kv_bytes: int  # of all groups together


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
) -> KvCacheSizing:
    """Size the pool from the memory given (by default half of what is free, at most what ``max_num_seqs`` full contexts need).

    ``block_bytes``: of one block in all groups together.

    Raises ``InvalidOption`` for values out of range and ``CapacityError`` if not even one block fits.
    """
    if block_size < 1:
        raise InvalidOption("block_size is out of range", got=block_size, allowed="from 1 (tokens)")
    if max_model_len is not None and not 1 <= max_model_len <= max_positions:
        raise InvalidOption(
            "max_model_len is out of range",
            got=max_model_len,
            allowed=f"1 to {max_positions}, the positions of this model",
            remedy="Leave it out for the longest context that fits",
        )
    length = max_model_len or max_positions
    full = max(group.max_blocks(length, block_size, max_num_batched_tokens) for group in groups)
    free = available_bytes()
    if kv_cache_memory is None:
        num_blocks = min(full * max_num_seqs, int(free * DEFAULT_SHARE) // block_bytes)
        source = f"{DEFAULT_SHARE:.0%} of the {format_bytes(free)} that are free"
    else:
        asked = parse_bytes(kv_cache_memory)
        num_blocks = min(asked, free) // block_bytes
        source = f"kv_cache_memory={format_bytes(asked)}"
        if asked > free:
            warnings.warn(
                f"kv_cache_memory={format_bytes(asked)} is more than the {format_bytes(free)} that are free: "
                f"the KV pool has {format_bytes(num_blocks * block_bytes)}",
                KvCacheWarning,
                stacklevel=3,
            )
    if num_blocks < 1:
        raise CapacityError(
            "not even one KV block fits in memory",
            got=source,
            allowed=f"at least {format_bytes(block_bytes)}, one block of {block_size} tokens",
            remedy="Free memory, give more of it with kv_cache_memory, or lower block_size",
        )
    if num_blocks < full:
        fits = num_blocks * block_size
        warnings.warn(
            f"a context of {length} tokens needs {format_bytes(full * block_bytes)} of KV cache and {source} hold "
            f"{format_bytes(num_blocks * block_bytes)}: max_model_len is reduced from {length} to {fits}",
            KvCacheWarning,
            stacklevel=3,
        )
        length = fits
    return KvCacheSizing(num_blocks, length, num_blocks * block_bytes)
