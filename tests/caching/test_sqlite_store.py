"""The SQLite store equals a naive store, shares its file between threads and processes, and fails in one clause."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.caching.naive_store import Clock, NaiveStore, compare, limits, mix
from tests.exhaustive import repeats
from tests.small_disk import small_disk

from hasten.caching import sqlite_file, sqlite_store
from hasten.caching.base import StoreFailed, StoreUsage
from hasten.caching.sqlite_store import SqliteStore, _Uses

KEYS = [index.to_bytes(2, "big") * 16 for index in range(3000)]


def failure_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except StoreFailed as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, and a sync waits for the disk."""
    monkeypatch.setattr(sqlite_file, "SYNCHRONOUS", "OFF")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_equals_the_naive_store(file: Path, eviction: str) -> None:
    clock, setting = Clock(), limits(max_bytes=2100, eviction=eviction)
    naive = NaiveStore(setting, clock)
    for seed in range(4):  # each part goes on with the file of the last one
        store = SqliteStore(file, setting, clock)
        naive.num_evicted = 0
        compare(store, naive, random.Random(seed), repeats("sqlite store") // 4)
        store.close()
        clock.now += 1  # the next uses are later


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_uses_that_are_not_written_yet_count(file: Path, eviction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A use is written with a put or when its key is next to be evicted; without the latter, the comparison fails."""
    monkeypatch.setattr(sqlite_store, "USES_PER_PUT", 0)
    clock, setting = Clock(), limits(max_bytes=2100, eviction=eviction)
    store = SqliteStore(file, setting, clock)
    compare(store, NaiveStore(setting, clock), random.Random(1), 2000)
    store.clear()
    monkeypatch.setattr(_Uses, "save", lambda *args, **more: 0)
    with pytest.raises(AssertionError):
        compare(store, NaiveStore(setting, clock), random.Random(2), 2000)
    monkeypatch.undo()
    store.close()


def test_what_was_put_is_there_after_a_restart(file: Path) -> None:
    clock = Clock()
    store = SqliteStore(file, limits(), clock)
    store.put(KEYS[0], b"\0" * 5000)
    store.put(KEYS[1], b"")
    assert store.get(KEYS[0]) == b"\0" * 5000
    store.close()
    clock.now += 99.9
    store = SqliteStore(file, limits(), clock)
    assert [store.get(key) for key in KEYS[:3]] == [b"\0" * 5000, b"", None]
    assert {entry.key: entry.hits for entry in store.entries()} == {KEYS[0]: 2, KEYS[1]: 1}
    clock.now += 0.1
    assert store.get(KEYS[0]) is None
    assert store.usage() == StoreUsage(num_entries=0, num_bytes=0)
    store.close()


def test_a_value_above_the_limit_is_not_stored_and_evicts_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(file, limits())
    store.put(KEYS[0], b"small")
    store.put(KEYS[1], bytes(9_969))
    monkeypatch.setattr(sqlite_store, "MAX_RECORD", 500)  # SQLite has a limit of its own
    store.put(KEYS[2], bytes(469))
    store.put(KEYS[3], bytes(468))
    assert [store.get(key) for key in KEYS[:4]] == [b"small", None, None, bytes(468)]
    assert store.num_evicted == 0
    store.close()


def test_lower_limits_hold_after_the_next_put(file: Path) -> None:
    store = SqliteStore(file, limits(max_entries=2000, max_bytes=10**6))
    for key in KEYS[:1000]:
        store.put(key, b"old")
    assert [entry.key for entry in store.entries()] == KEYS[:1000]
    store.close()
    store = SqliteStore(file, limits(max_entries=3))
    store.put(KEYS[1000], b"new")  # takes several transactions
    assert {entry.key for entry in store.entries()} == {*KEYS[998:1001]}
    assert store.num_evicted == 998
    store.close()


def test_a_put_without_time_to_make_room_fails_but_gets_on(file: Path) -> None:
    store = SqliteStore(file, limits(max_entries=2000, max_bytes=10**6))
    for key in KEYS[:600]:
        store.put(key, b"old")
    store.close()
    store = SqliteStore(file, limits(max_entries=1, timeout=0.0))
    messages = []
    while not messages or messages[-1]:
        messages.append(failure_of(lambda: store.put(KEYS[1000], b"new")))
    assert set(messages[:-1]) == {"the call took longer than the time limit"}
    assert len(messages) <= 601  # each evicts something
    assert [entry.key for entry in store.entries()] == [KEYS[1000]]
    store.close()


def test_clear_gives_the_space_back(file: Path) -> None:
    store = SqliteStore(file, limits(max_entries=2000, max_bytes=10**7))
    other = SqliteStore(file, limits())
    for key in KEYS[:300]:
        store.put(key, bytes(10_000))
    assert other.get(KEYS[0]) == bytes(10_000)
    assert store.clear() == 300
    assert sum(path.stat().st_size for path in file.parent.iterdir()) < 300_000
    assert other.get(KEYS[0]) is None
    other.put(KEYS[0], b"new")
    store.close()
    other.close()
    store = SqliteStore(file, limits())
    assert store.get(KEYS[0]) == b"new"
    store.close()


def test_only_the_owner_may_read_what_was_made(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = SqliteStore(tmp_path / "made" / "results.sqlite", limits())
        store.put(KEYS[0], b"private")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["results.sqlite", "results.sqlite-wal", "results.sqlite-shm"], 0o600)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_threads_keep_the_limits_and_get_only_what_was_put(file: Path) -> None:
    store = SqliteStore(file, limits(max_bytes=3000, max_entries=20))
    assert mix(store, num_threads=8, num_operations=150) == []
    assert store.usage().num_bytes == sum(entry.num_bytes for entry in store.entries()) > 0
    store.close()


WRITER = """
import sys
from hasten.caching.base import StoreLimits
from hasten.caching.sqlite_store import SqliteStore
file, first, num = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = SqliteStore(file, StoreLimits(ttl=1e6, max_bytes=10**9, max_entries=10**6, eviction="lru", timeout=30.0))
for index in range(first, first + num):
    key = index.to_bytes(2, "big") * 16
    store.put(key, key * 10)
    assert store.get(key) == key * 10
store.close()
"""


def test_two_processes_that_write_at_once_lose_nothing(file: Path) -> None:
    """They also make the file at once."""
    commands = [[sys.executable, "-c", WRITER, str(file), str(first), "300"] for first in (0, 300)]
    processes = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "src"}) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    store = SqliteStore(file, limits())
    assert [store.get(key) for key in KEYS[:600]] == [key * 10 for key in KEYS[:600]]
    assert store.usage() == StoreUsage(num_entries=600, num_bytes=600 * 352)
    store.close()


def test_a_locked_file_fails_puts_but_not_gets(file: Path) -> None:
    store = SqliteStore(file, limits(timeout=0.01))
    store.put(KEYS[0], b"value")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (lambda: store.put(KEYS[1], b""), lambda: store.remove(KEYS[0]), store.clear):
        assert failure_of(call) == "the file is locked by another process"
    assert store.get(KEYS[0]) == b"value"
    assert store.usage().num_entries == len(list(store.entries())) == 1
    other.execute("ROLLBACK")
    other.close()
    store.put(KEYS[1], b"now")
    assert store.get(KEYS[1]) == b"now"
    store.close()


def test_a_full_disk_fails_puts_but_not_gets(file: Path) -> None:
    store = SqliteStore(file, limits(max_bytes=10**7, max_entries=1000))
    store.put(KEYS[0], bytes(5000))
    with small_disk(900_000):
        failures = [failure_of(lambda key=key: store.put(key, bytes(5000))) for key in KEYS[:60]]
        assert set(failures) == {None, "the disk failed or is full"}
        stored = {entry.key for entry in store.entries()}
        assert stored == {key for key, failure in zip(KEYS, failures, strict=False) if failure is None}
        assert all(store.get(key) == bytes(5000) for key in stored)
    store.put(KEYS[300], bytes(5000))
    assert {entry.key for entry in store.entries()} == stored | {KEYS[300]}
    store.close()


def test_a_closed_store_fails_every_call(file: Path) -> None:
    store = SqliteStore(file, limits())
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
        assert failure_of(call) == "the store is closed"
    assert [path.name for path in file.parent.iterdir()] == ["results.sqlite"]  # the log is in the file


def test_uses_are_written_at_the_end_of_the_process(file: Path) -> None:
    program = (
        "import atexit, sys\nfrom hasten.caching.base import StoreLimits\nfrom hasten.caching.sqlite_store import SqliteStore\n"
        "store = SqliteStore(sys.argv[1], StoreLimits(ttl=1e6, max_bytes=10**6, max_entries=10, eviction='lru', timeout=1.0))\n"
        "atexit.register(store.close)\nstore.put(bytes(32), b'value')\nstore.get(bytes(32))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(file)], check=True, env={**os.environ, "PYTHONPATH": "src"})
    store = SqliteStore(file, limits())
    assert [entry.hits for entry in store.entries()] == [1]
    store.close()


def test_the_value_of_another_key_is_never_returned(file: Path) -> None:
    store = SqliteStore(file, limits())
    store.put(KEYS[0], b"mine")
    store.put(KEYS[1], b"yours")
    store.close()
    other = sqlite3.connect(file)
    with other:
        other.execute("UPDATE entries SET record_id = 3 - record_id")
    other.close()
    store = SqliteStore(file, limits())
    for key in KEYS[:2]:
        assert failure_of(lambda key=key: store.get(key)) == sqlite_file.DAMAGED
    store.close()
