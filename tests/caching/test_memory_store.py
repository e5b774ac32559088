"""The memory store equals a naive store over random operations, keeps its limits, and may be used by many threads."""

from __future__ import annotations

import random

import pytest
from tests.caching.naive_store import Clock, NaiveStore, compare, limits, mix
from tests.exhaustive import repeats

from hasten.caching.base import StoreFailed
from hasten.caching.eviction import EvictionQueue
from hasten.caching.memory_store import MemoryStore

KEYS = [bytes([index]) * 32 for index in range(200)]


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_equals_the_naive_store(eviction: str) -> None:
    for seed in range(4):
        clock, setting = Clock(), limits(max_bytes=2100, eviction=eviction)
        compare(MemoryStore(setting, clock), NaiveStore(setting, clock), random.Random(seed), repeats("memory store") // 4)


def test_a_wrong_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with hits that count in LRU, or with the last of a bucket first, the comparison fails."""
    clock, setting = Clock(), limits(max_bytes=2100)
    faults = {"_bucket": lambda self, hits: hits, "first": lambda self: next(reversed(self._buckets[min(self._buckets)]))}
    for name, fault in faults.items():
        with monkeypatch.context() as patch:
            patch.setattr(EvictionQueue, name, fault)
            with pytest.raises(AssertionError):
                compare(MemoryStore(setting, clock), NaiveStore(setting, clock), random.Random(0), 2000)


def test_a_value_above_the_limit_is_not_stored_and_evicts_nothing() -> None:
    store = MemoryStore(limits(max_bytes=1000))
    store.put(KEYS[0], b"small")
    store.put(KEYS[1], bytes(969))
    store.put(KEYS[2], bytes(968))
    assert [store.get(key) for key in KEYS[:3]] == [None, None, bytes(968)]
    store.put(KEYS[2], bytes(2000))
    assert store.get(KEYS[2]) is None  # the caller replaced it
    assert store.num_evicted == 1


def test_a_new_value_is_not_evicted_by_its_own_put() -> None:
    store = MemoryStore(limits(max_entries=2, eviction="lfu"))
    for key in KEYS[:2]:
        store.put(key, b"hit often")
        for _ in range(5):
            store.get(key)
    store.put(KEYS[2], b"new")
    assert [store.get(key) for key in KEYS[:3]] == [None, b"hit often", b"new"]


def test_a_clock_set_back_loses_nothing_and_serves_nothing_expired() -> None:
    clock = Clock()
    store = MemoryStore(limits(), clock)
    store.put(KEYS[0], b"first")
    clock.now -= 50
    store.put(KEYS[1], b"second")
    assert store.get(KEYS[0]) == b"first"
    clock.now += 100
    assert store.get(KEYS[1]) is None
    assert [entry.key for entry in store.entries()] == [KEYS[0]]


def test_threads_keep_the_limits_and_get_only_what_was_put() -> None:
    store = MemoryStore(limits(max_bytes=3000, max_entries=20))
    assert mix(store, num_threads=8, num_operations=2000) == []
    assert store.usage().num_bytes == sum(entry.num_bytes for entry in store.entries()) > 0


def test_a_closed_store_fails_every_call() -> None:
    store = MemoryStore(limits())
    store.put(KEYS[0], b"value")
    store.close()
    store.close()
    calls = (
        lambda: store.get(KEYS[0]),
        lambda: store.put(KEYS[0], b""),
        lambda: store.remove(KEYS[0]),
        store.clear,
        store.entries,
        store.usage,
    )
    for call in calls:
        with pytest.raises(StoreFailed, match="closed"):
            call()
