"""The identity of a block's content: SHA-256 over its tokens, all tokens before them, and the salt of the tenant.

A collision would show one request another's text, so the hash is a cryptographic one. The salt enters at the root: two
tenants never share a block (the timing side channel of CVE-2025-46570).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def root_hash(salt: str) -> bytes:
    """The parent of a sequence's first block."""
    return hashlib.sha256(b"hasten/kv/1\0" + salt.encode()).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


def extend_hashes(hashes: list[bytes], salt: str, token_ids: Sequence[int], block_size: int) -> None:
    """Append the hash of every full block of ``token_ids`` that ``hashes`` does not cover yet."""
    for begin in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = hashes[-1] if hashes else root_hash(salt)
        hashes.append(block_hash(parent, token_ids[begin : begin + block_size]))
