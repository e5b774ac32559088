"""The result cache by itself: what it remembers and drops while its store is slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hasten.caching import result_cache
from hasten.caching.base import StoredEntry, StoreUsage
from hasten.caching.guarded_store import GuardedStore
from hasten.caching.result_cache import ResultCache
from hasten.caching.stored_result import StoredResult
from hasten.core.output import CompletionOutput
from hasten.core.request import ResultTicket
from hasten.core.result import FinishReason, TokenLogprob


class HeldStore:
    """A store whose puts wait until ``release`` is set."""

    does_io = True
    counts_usage = True
    num_evicted = 0

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.is_putting, self.release = threading.Event(), threading.Event()

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.is_putting.set()
        assert self.release.wait(60)
        self.values[key] = value

    def remove(self, key: bytes) -> None:
        raise NotImplementedError

    def clear(self) -> int:
        raise NotImplementedError

    def entries(self) -> Iterator[StoredEntry]:
        raise NotImplementedError

    def usage(self) -> StoreUsage:
        return StoreUsage(num_entries=len(self.values), num_bytes=0)

    def close(self) -> None:
        pass


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def result(num_tokens: int, num_top: int = 0) -> StoredResult:
    top = tuple((token, -1.0) for token in range(num_top))
    logprobs = tuple(TokenLogprob(7, -1.0, 1, top) for _ in range(num_tokens)) if num_top else None
    tokens = (7,) * num_tokens
    output = CompletionOutput(index=0, text="", token_ids=tokens, logprobs=logprobs, finish_reason=FinishReason.LENGTH)
    return StoredResult((output,), ((0, 0, num_tokens),))


def is_remembered(cache: ResultCache, number: int) -> bool:
    return cache.completed_since(ResultTicket(key=key(number), looked_up=0.0)) is not None


def test_results_that_wait_too_long_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a slow store holds up neither ``close`` nor the end of the process for long."""
    store = HeldStore()
    cache = ResultCache(GuardedStore(store), b"", clock=lambda: 1.0)
    for number in range(1000):
        cache.add(key(number), result(3))
    assert store.is_putting.wait(60)
    monkeypatch.setattr(result_cache, "MAX_WRITE_WAIT", -1.0)
    store.release.set()
    cache.close()
    found = cache.stats()
    assert list(store.values) == [key(0)]
    assert (found["stored"], found["dropped"], found["unwritten"]) == (1, 999, 0)


def test_a_full_queue_drops_results() -> None:
    store = HeldStore()
    cache = ResultCache(GuardedStore(store), b"", clock=lambda: 1.0)
    for number in range(result_cache.MAX_UNWRITTEN + 5):
        cache.add(key(number), result(1))
    assert cache.stats()["dropped"] == 5
    store.release.set()
    cache.close()
    assert set(store.values) == {key(number) for number in range(result_cache.MAX_UNWRITTEN)}


@pytest.mark.parametrize(("num_tokens", "num_top"), [(400, 0), (50, 7)])
def test_results_in_memory_are_bounded_by_their_tokens(num_tokens: int, num_top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "MAX_REMEMBERED_TOKENS", 1000)
    store = HeldStore()
    cache = ResultCache(GuardedStore(store), b"", clock=lambda: 1.0)
    for number in range(5):
        cache.add(key(number), result(num_tokens, num_top))
    assert [is_remembered(cache, number) for number in range(5)] == [True, True, False, False, False]
    assert cache.stats()["dropped"] == 3, "the store is slow, so results that do not fit are not kept"
    store.release.set()
    cache.flush()
    for number in range(5):
        cache.add(key(number), result(num_tokens, num_top))
        cache.flush()
    assert [is_remembered(cache, number) for number in range(5)] == [False, False, False, True, True]
    cache.add(key(9), result(5000))
    assert is_remembered(cache, 9), "a single result may be larger"
    cache.close()
    assert set(store.values) == {key(number) for number in (0, 1, 2, 3, 4, 9)}


def test_the_number_of_results_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "MAX_RECENT", 3)
    store = HeldStore()
    store.release.set()
    cache = ResultCache(GuardedStore(store), b"", clock=lambda: 1.0)
    for number in range(6):
        cache.add(key(number), result(1))
        cache.flush()
    assert [is_remembered(cache, number) for number in range(6)] == [False, False, False, True, True, True]
    cache.close()
