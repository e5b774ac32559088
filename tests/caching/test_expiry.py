"""Values live for their time, whether they are read or not; expired ones are the first to go. Both stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.caching.naive_store import Clock, limits

from hasten.caching.base import ResultStore, StoreLimits, StoreUsage
from hasten.caching.memory_store import EXPIRED_PER_CALL, MemoryStore
from hasten.caching.sqlite_store import SqliteStore

MakeStore = Callable[[StoreLimits, Clock], ResultStore]
KEYS = [bytes([index]) * 32 for index in range(200)]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return MemoryStore if request.param == "memory" else lambda setting, clock: SqliteStore(tmp_path / "file", setting, clock)


def test_reading_does_not_extend_the_time_to_live(make: MakeStore) -> None:
    clock = Clock()
    store = make(limits(), clock)
    store.put(KEYS[0], b"value")
    clock.now += 99.9
    assert store.get(KEYS[0]) == b"value"
    clock.now += 0.1
    assert store.get(KEYS[0]) is None
    store.close()


@pytest.mark.parametrize("size", [10, 9000])
def test_expired_values_go_before_others_and_are_not_counted(make: MakeStore, size: int) -> None:
    """The large value needs the room of more of them than a put removes anyway; they were used later than the value that stays."""
    clock, num_old = Clock(), 2 * EXPIRED_PER_CALL
    store = make(limits(max_entries=num_old + 1), clock)
    for key in KEYS[:num_old]:
        store.put(key, b"expires first")
    clock.now += 50
    store.put(KEYS[198], b"used long ago")
    for key in KEYS[:num_old]:
        assert store.get(key)
    clock.now += 50
    store.put(KEYS[199], bytes(size))
    assert store.num_evicted == 0
    assert store.usage() == StoreUsage(num_entries=2, num_bytes=77 + size)
    assert {entry.key for entry in store.entries()} == {KEYS[198], KEYS[199]}
    store.close()


def test_expired_values_do_not_count_as_removed(make: MakeStore) -> None:
    clock = Clock()
    store = make(limits(), clock)
    store.put(KEYS[0], b"old")
    clock.now += 60
    store.put(KEYS[1], b"new")
    clock.now += 60
    assert store.clear() == 1
    assert store.clear() == 0
    store.close()
