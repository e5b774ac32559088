"""No failure of a store reaches the caller: counts, warnings and skipped calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from hasten.caching.base import StoredEntry, StoreFailed, StoreUsage
from hasten.caching.guarded_store import GuardedStore

A, B = b"a" * 32, b"b" * 32


class DictStore:
    """A store that fails as told: ``fault`` raises in each call whose kind it holds."""

    does_io = False
    num_evicted = 5

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.faults: dict[str, BaseException] = {}
        self.num_calls = 0
        self.is_closed = False

    def _do(self, kind: str) -> None:
        self.num_calls += 1
        if kind in self.faults:
            raise self.faults[kind]

    def get(self, key: bytes) -> bytes | None:
        self._do("get")
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._do("put")
        self.values[key] = value

    def remove(self, key: bytes) -> None:
        self._do("remove")
        self.values.pop(key, None)

    def clear(self) -> int:
        raise AssertionError("not guarded")

    def entries(self) -> Iterator[StoredEntry]:
        raise AssertionError("not guarded")

    def usage(self) -> StoreUsage:
        self._do("usage")
        return StoreUsage(num_entries=len(self.values), num_bytes=0)

    def close(self) -> None:
        self.is_closed = True


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def guarded(store: DictStore, clock: FakeClock) -> GuardedStore:
    return GuardedStore(store, clock=clock)


def counts(guarded: GuardedStore) -> tuple[int, int, int, int]:
    return guarded.hits, guarded.misses, guarded.failures, guarded.skipped


def test_a_store_that_works_is_passed_through(store: DictStore, guarded: GuardedStore, caplog: pytest.LogCaptureFixture) -> None:
    assert guarded.get(A) is None
    assert guarded.put(A, b"x") is True
    assert guarded.get(A) == b"x"
    assert guarded.put(B, b"") is True and guarded.get(B) == b""  # an empty value is a hit
    assert guarded.usage() == StoreUsage(num_entries=2, num_bytes=0)
    assert guarded.remove(A) is True
    assert guarded.get(A) is None
    assert counts(guarded) == (2, 2, 0, 0)
    assert guarded.num_evicted == 5 and guarded.does_io is False
    guarded.close()
    assert store.is_closed and caplog.records == []


def test_a_store_that_is_down_costs_three_calls_and_then_probes(
    store: DictStore, clock: FakeClock, guarded: GuardedStore, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.put(A, b"x")
    store.faults["get"] = StoreFailed("Redis at h:1: Connection refused")
    assert [guarded.get(A) for _ in range(10)] == [None] * 10
    assert counts(guarded) == (0, 0, 3, 7) and store.num_calls == 4
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2  # the first failure, and that the breaker opens
    assert "Redis at h:1: Connection refused" in caplog.text and "in 1 s" in caplog.text
    for wait in (1, 2, 4):
        clock.now += wait
        assert [guarded.get(A) for _ in range(3)] == [None] * 3  # one call probes
    assert counts(guarded) == (0, 0, 6, 13) and len(caplog.records) == 2  # still the same failure
    store.faults.clear()
    clock.now += 8
    assert guarded.get(A) == b"x" and guarded.get(B) is None
    assert [record.getMessage() for record in caplog.records[2:]] == ["reads of the result cache work again"]


def test_a_store_that_is_full_still_answers_reads(
    store: DictStore, clock: FakeClock, guarded: GuardedStore, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.put(A, b"x")
    store.faults["put"] = StoreFailed("full")
    for _ in range(10):
        assert guarded.get(A) == b"x"
        assert guarded.put(B, b"y") is False
    assert counts(guarded) == (10, 0, 3, 7)
    messages = [record.getMessage().split(":")[0] for record in caplog.records]
    assert messages == ["the result cache has failed", "writes of the result cache fail"]


@pytest.mark.parametrize("kind", ["get", "put", "remove", "usage"])
@pytest.mark.parametrize("error", [StoreFailed("down"), KeyError("a bug"), OSError(28, "No space"), RecursionError()])
def test_no_method_raises(
    kind: str, error: Exception, store: DictStore, guarded: GuardedStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.faults[kind] = error
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: guarded.get(A),
        "put": lambda: guarded.put(A, b"x"),
        "remove": lambda: guarded.remove(A),
        "usage": guarded.usage,
    }
    assert not any(calls[kind]() for _ in range(5))
    assert counts(guarded) == (0, 0, 3, 2)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == (0 if isinstance(error, StoreFailed) else 3)
    assert all(record.exc_info is not None and record.exc_info[1] is error for record in errors)


@pytest.mark.parametrize("is_open", [False, True])
def test_an_interrupt_is_no_failure_and_lets_the_next_call_probe(
    is_open: bool, store: DictStore, clock: FakeClock, guarded: GuardedStore
) -> None:
    if is_open:
        store.faults["get"] = StoreFailed("down")
        for _ in range(3):
            guarded.get(A)
        clock.now += 1
    failures = guarded.failures
    store.faults["get"] = KeyboardInterrupt()
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            guarded.get(A)
    store.faults.clear()
    store.values[A] = b"x"
    assert guarded.get(A) == b"x" and guarded.failures == failures
