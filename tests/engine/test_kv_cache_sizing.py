"""The size of the KV cache, on machines of every size."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from hasten.core.errors import CapacityError, InvalidOption
from hasten.engine import kv_cache_sizing
from hasten.engine.kv_cache_sizing import KvCacheSizing, KvCacheWarning, parse_bytes, size_kv_cache
from hasten.kv.group import KvGroup

GROUP, MIB = KvGroup((0, 1), 2, 32), 1 << 20
BLOCK_BYTES = GROUP.block_bytes(16, 4)


def sized(monkeypatch: pytest.MonkeyPatch, free: int, **changes: Any) -> KvCacheSizing:
    monkeypatch.setattr(kv_cache_sizing, "available_bytes", lambda: free)
    arguments: dict[str, Any] = {
        "block_size": 16,
        "block_bytes": BLOCK_BYTES,
        "max_positions": 4096,
        "max_model_len": None,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "kv_cache_memory": None,
        **changes,
    }
    return size_kv_cache([GROUP], **arguments)


def test_the_cache_takes_what_the_sequences_need(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sized(monkeypatch, 1 << 40, max_num_seqs=3).num_blocks == 3 * 4096 // 16


def test_the_cache_takes_at_most_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sized(monkeypatch, 512 * MIB).kv_bytes == 128 * MIB


@pytest.mark.parametrize(("memory", "expected"), [(None, 64 * MIB), ("400MiB", 256 * MIB), ("100MiB", 100 * MIB)])
def test_memory_that_drafters_will_fill_is_not_free(monkeypatch: pytest.MonkeyPatch, memory: str | None, expected: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KvCacheWarning)
        assert sized(monkeypatch, 512 * MIB, reserved_bytes=256 * MIB, kv_cache_memory=memory).kv_bytes == expected
    with pytest.raises(CapacityError, match="not even one KV block"):
        sized(monkeypatch, 512 * MIB, reserved_bytes=600 * MIB)


def test_a_context_beyond_all_memory_is_reduced_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(KvCacheWarning, match="reduced from 500000000 to 131072"):
        sizing = sized(monkeypatch, 512 * MIB, max_positions=500_000_000)
    assert (sizing.max_model_len, sizing.kv_bytes) == (131_072, 128 * MIB)


@pytest.mark.parametrize("memory", [None, "1TiB"])
def test_no_memory_is_so_large_that_its_blocks_cannot_be_listed(monkeypatch: pytest.MonkeyPatch, memory: str | None) -> None:
    sizing = sized(monkeypatch, 1 << 45, kv_cache_memory=memory, block_bytes=64, max_positions=2**29 - 1, max_model_len=64)
    assert sizing.num_blocks == (kv_cache_sizing.MAX_BLOCKS if memory else 64 * 4)


@pytest.mark.parametrize(("size", "expected"), [(5, 5), ("2KiB", 2048), ("1.5 GB", 1_500_000_000), ("7", 7)])
def test_amounts_of_memory_are_read(size: int | str, expected: int) -> None:
    assert parse_bytes(size, "kv_cache_memory") == expected


@pytest.mark.parametrize("size", [0, -1, True, "", "lots", "0.1", "9" * 400, "9" * 400 + "TiB", "1e3", "-4GiB"])
def test_what_is_not_an_amount_of_memory_is_refused(size: Any) -> None:
    with pytest.raises(InvalidOption, match="not an amount of memory"):
        parse_bytes(size, "kv_cache_memory")
