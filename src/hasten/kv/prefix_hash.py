"""The hash of a block: SHA-256 over its tokens, all tokens before them, and the cache salt.

A collision would show one tenant's text to another, so the hash is cryptographic. The salt enters at the root: tenants never share
a block, so none can observe the cache hits of another (CVE-2025-46570).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def cache_salt(tenant: str, exit_layer: int | None) -> str:
    """Return the salt of a tenant's blocks, computed by ``exit_layer`` layers (None: all layers).

    Every prefix cache takes its salts from here. Fewer layers compute other keys and values, so ``exit_layer`` is part of the salt.
    """
    return f"tenant:{tenant}" if exit_layer is None else f"exit_layer:{exit_layer}/tenant:{tenant}"


def root_hash(salt: str) -> bytes:
    """Return the parent hash of a sequence's first block."""
    return hashlib.sha256(b"hasten/kv/1\0" + salt.encode()).digest()


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


def extend_hashes(hashes: list[bytes], salt: str, token_ids: Sequence[int], block_size: int) -> None:
    """Append the hashes of the full blocks of ``token_ids`` that ``hashes`` does not cover."""
    for begin in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = hashes[-1] if hashes else root_hash(salt)
        hashes.append(hash_block(parent, token_ids[begin : begin + block_size]))
