"""``KvFile``: what a file of saved KV blocks holds. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFile:
    """The KV blocks of a prefix in a file, as ``save_kv``, ``load_kv`` and ``hasten kv ls`` report them."""

    path: str
    model: str  # the name under which it was loaded when the file was saved
    num_tokens: int  # of the prefix
    num_blocks: int  # in the file, of all KV groups together
    num_bytes: int  # of the file
    kv_cache_dtype: str
    kernels: str
    num_new_blocks: int = 0  # that loading added to the prefix cache; it had the others
    seconds: float = 0.0  # that saving or loading took
