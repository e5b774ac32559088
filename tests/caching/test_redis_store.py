"""Results in a real Redis server, seen through the package's own client; and what a server does to a cache."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from tests.caching.fault_proxy import FaultProxy
from tests.caching.redis_server import RedisServer
from tests.exhaustive import repeats

from hasten.caching.base import StoreFailed, StoreLimits, StoreUsage
from hasten.caching.guarded_store import GuardedStore
from hasten.caching.redis_store import RedisStore
from hasten.core.errors import InvalidOption

TIMEOUT = 10.0  # of calls that should succeed, on a busy machine
A, B = b"a" * 32, b"b" * 32


def open_store(url: str, timeout: float = TIMEOUT, ttl: float = 60.0) -> RedisStore:
    return RedisStore(url, StoreLimits(ttl=ttl, max_bytes=1, max_entries=1, eviction="lru", timeout=timeout))


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisStore]:
    opened = open_store(redis_server.url)
    yield opened
    opened.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as opened:
        yield opened


def name(key: bytes) -> bytes:
    return b"hasten:result:1:" + key.hex().encode()


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_random_calls_equal_a_dict(store: RedisStore, client: redis.Redis) -> None:
    draw, oracle = random.Random(0), dict[bytes, bytes]()
    for _ in range(2000):
        key, kind = key_of(draw.randrange(40)), draw.random()
        if kind < 0.45:
            assert store.get(key) == oracle.get(key)
        elif kind < 0.85:
            oracle[key] = draw.randbytes(draw.choice([0, 1, 100, 50_000]))
            store.put(key, oracle[key])
        elif kind < 0.95:
            store.remove(key)
            oracle.pop(key, None)
        elif kind < 0.99:
            assert {entry.key: entry.num_bytes for entry in store.entries()} == {k: 32 + len(v) for k, v in oracle.items()}
            assert store.usage() == StoreUsage(num_entries=len(oracle), num_bytes=sum(32 + len(v) for v in oracle.values()))
        else:
            assert store.clear() == len(oracle)
            oracle.clear()
    assert {key: client.get(key) for key in client.keys(b"*")} == {name(key): value for key, value in oracle.items()}
    assert store.num_evicted == 0


@pytest.mark.parametrize("ttl", [1.0, 86_400.0, 1e9])
def test_values_end_when_the_server_says_so(ttl: float, redis_server: RedisServer, client: redis.Redis) -> None:
    store = open_store(redis_server.url, ttl=ttl)
    before = time.time()
    store.put(A, b"x")
    assert 0 < client.pttl(name(A)) <= ttl * 1000
    if ttl > 1:
        (entry,) = store.entries()
        assert before + ttl - 1 <= entry.expires <= time.time() + ttl + 1 and entry.hits is None
        client.pexpireat(name(A), 1)  # long ago
        assert store.get(A) is None and list(store.entries()) == [] and store.clear() == 0
    store.close()


def test_other_names_of_the_database_are_left_alone(store: RedisStore, client: redis.Redis) -> None:
    others = [b"x", b"hasten:result:1:", b"hasten:result:1:abc", b"hasten:result:2:" + b"0" * 64, name(A) + b"0", name(A).upper()]
    others += [b"hasten:result:1:" + b"Z" * 64, b"hasten:result:1:" + b"A" * 64, b"hasten:result:1:" + b"0" * 63 + b"\n"]
    for other in others:
        client.set(other, b"theirs")
    store.put(A, b"ours")
    assert [entry.key for entry in store.entries()] == [A]
    assert store.clear() == 1
    assert sorted(client.keys(b"*")) == sorted(others)


def test_a_value_of_another_type_is_a_miss_and_is_replaced(store: RedisStore, client: redis.Redis) -> None:
    client.rpush(name(A), b"a list")
    client.set(name(B), b"without an end")
    assert store.get(A) is None and list(store.entries()) == []
    assert store.clear() == 2
    client.hset(name(A), "field", "value")
    store.put(A, b"x")
    assert store.get(A) == b"x" and client.type(name(A)) == b"string"


def test_many_names_are_listed_in_parts_and_never_at_once(store: RedisStore, client: redis.Redis) -> None:
    keys = {key_of(number) for number in range(2500)}
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(name(key), b"x", px=60_000)
        pipeline.execute()
    client.config_resetstat()
    assert store.usage() == StoreUsage(num_entries=2500, num_bytes=2500 * 33)
    assert {entry.key for entry in store.entries()} == keys
    assert store.clear() == 2500
    used = {command.removeprefix("cmdstat_"): row["calls"] for command, row in client.info("commandstats").items()}
    used.pop("config|resetstat", None)
    assert set(used) <= {"scan", "strlen", "pttl", "unlink", "info"} and used["scan"] >= 9


def test_a_call_is_one_round_trip_and_connecting_takes_none(redis_server: RedisServer, client: redis.Redis) -> None:
    client.config_resetstat()
    store = open_store(redis_server.url)
    store.put(A, b"x")
    assert store.get(A) == b"x"
    store.close()
    used = {command.removeprefix("cmdstat_"): row["calls"] for command, row in client.info("commandstats").items()}
    assert {command: used[command] for command in used if command not in ("config|resetstat", "info")} == {"set": 1, "get": 1}


def test_databases_do_not_meet(redis_server: RedisServer) -> None:
    zero, one = open_store(redis_server.url), open_store(redis_server.url + "?db=1")
    one.put(A, b"one")
    assert zero.get(A) is None and one.get(A) == b"one"
    with pytest.raises(StoreFailed, match="out of range"):
        open_store(redis_server.url + "?db=99").get(A)
    zero.close()
    one.close()


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_restart_is_a_failure_and_then_a_cache_again(is_saved: bool, own_redis_server: RedisServer) -> None:
    store = open_store(own_redis_server.url)
    with ThreadPoolExecutor(8) as threads:  # several idle connections
        list(threads.map(lambda number: store.put(key_of(number), b"x"), range(64)))
    if is_saved:
        own_redis_server.save()
    own_redis_server.kill()
    for call in (lambda: store.get(key_of(0)), lambda: store.put(A, b"x"), store.usage):
        with pytest.raises(StoreFailed, match="onnect"):
            call()
    own_redis_server.start()
    assert store.get(key_of(0)) == (b"x" if is_saved else None)  # at once: old connections are seen to be closed
    store.put(A, b"y")
    assert store.get(A) == b"y"
    store.close()


def test_restarts_in_the_middle_of_traffic_give_no_wrong_value(own_redis_server: RedisServer) -> None:
    guarded = GuardedStore(open_store(own_redis_server.url), clock=jumping_clock())
    wrong, ended, lock = [], threading.Event(), threading.Lock()
    progress = [0] * 4

    def traffic(thread: int) -> None:
        draw = random.Random(thread)
        while not ended.is_set():
            key = key_of(draw.randrange(200))
            if (value := guarded.get(key)) not in (None, value_of(key)):
                with lock:
                    wrong.append((key, value))
            guarded.put(key, value_of(key))
            progress[thread] += 1

    threads = [threading.Thread(target=traffic, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for round_ in range(6):
        seen, deadline = sum(progress), time.monotonic() + 30
        while sum(progress) < seen + 400 and time.monotonic() < deadline:
            threads[0].join(0.005)
        if round_ % 2:
            own_redis_server.save()
        own_redis_server.kill()
        own_redis_server.start()
    ended.set()
    for thread in threads:
        thread.join()
    guarded.close()
    assert wrong == [] and guarded.hits > 100 and guarded.failures >= 1


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_full_server_refuses_or_evicts(policy: str, own_redis_server: RedisServer) -> None:
    store = open_store(own_redis_server.url)
    store.put(A, b"first")
    with own_redis_server.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + (4 << 20))
    refusals = []
    for number in range(400):
        try:
            store.put(key_of(number), value_of(key_of(number)) * 10)
        except StoreFailed as error:
            refusals.append(str(error))
    values = [store.get(key_of(number)) for number in range(400)]
    kept = [number for number, value in enumerate(values) if value is not None]
    assert all(values[number] == value_of(key_of(number)) * 10 for number in kept)
    assert 0 < len(kept) < 400 and all("maxmemory" in message for message in refusals)
    if policy == "noeviction":
        assert len(refusals) == 400 - len(kept) and store.get(A) == b"first"
    else:
        assert refusals == []
    store.close()


def test_passwords_are_used_and_not_shown(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--requirepass", "p@ss word")
    try:
        store = open_store(server.url + "?password=p%40ss+word")
        store.put(A, b"x")
        assert store.get(A) == b"x"
        store.close()
        for url in (server.url, server.url + "?password=wrongsecret", server.url + "?password=p%40ss+word&username=wronguser"):
            store = open_store(url)
            for call in (lambda: store.get(A), lambda: store.put(A, b"x"), store.usage, store.clear):  # noqa: B023
                with pytest.raises(StoreFailed, match=r"Authentication|invalid username-password") as caught:
                    call()
                assert "secret" not in str(caught.value) and "wronguser" not in str(caught.value)
            store.close()
    finally:
        server.kill()


def test_a_read_only_replica_answers_reads(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--replicaof", "127.0.0.1", "1")  # nothing listens on port 1
    try:
        store = open_store(server.url)
        assert store.get(A) is None
        for call in (lambda: store.put(A, b"x"), lambda: store.remove(A)):
            with pytest.raises(StoreFailed, match="read only replica"):
                call()
        store.close()
    finally:
        server.kill()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hasten.caching.redis_connection", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    for module in [module for module in sys.modules if module.startswith("redis.")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InvalidOption) as caught:
        open_store("redis://localhost")
    assert 'pip install "hasten[redis]"' in str(caught.value)


def test_a_closed_store_fails_and_closes_again(store: RedisStore, client: redis.Redis) -> None:
    store.put(A, b"x")
    before = client.info("clients")["connected_clients"]
    store.close()
    store.close()
    for call in (lambda: store.get(A), lambda: store.put(A, b"x"), store.clear, store.usage, lambda: list(store.entries())):
        with pytest.raises(StoreFailed, match="closed"):
            call()
    deadline = time.monotonic() + 30
    while client.info("clients")["connected_clients"] != before - 1:
        assert time.monotonic() < deadline


def jumping_clock() -> Callable[[], float]:
    """Return a clock for a circuit breaker that never waits."""
    now = iter(range(0, 10**12, 100))
    return lambda: float(next(now))


def value_of(key: bytes) -> bytes:
    """Return the one value of a key, which holds the key."""
    return key + hashlib.sha256(key).digest() * (1 + key[0])


async def cancel_at_random(guarded: GuardedStore, num_cancels: int) -> tuple[int, list[Any]]:
    """Read and write in tasks of which many are cancelled during a call; return how many were, and what was wrong in any thread."""
    draw, wrong, num_cancelled = random.Random(1), list[Any](), 0

    def call(key: bytes, is_read: bool) -> None:
        try:
            if not is_read:
                guarded.put(key, value_of(key))
            elif (value := guarded.get(key)) not in (None, value_of(key)):
                wrong.append((key, value))
        except BaseException as error:
            wrong.append(error)

    async def task(slots: asyncio.Semaphore, key: bytes, is_read: bool) -> None:
        nonlocal num_cancelled
        async with slots:
            try:
                await asyncio.to_thread(call, key, is_read)
            except asyncio.CancelledError:
                num_cancelled += 1
                raise

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(16))  # ``asyncio.run`` waits for its threads
    slots = asyncio.Semaphore(16)
    while num_cancelled < num_cancels and not wrong:
        tasks = [asyncio.create_task(task(slots, key_of(draw.randrange(50)), draw.random() < 0.7)) for _ in range(100)]
        for task_ in tasks:
            loop.call_later(draw.uniform(0, 0.04), task_.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        wrong += [result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)]
    return num_cancelled, wrong


def traffic_with_cancels(fault_proxy: FaultProxy, num_cancels: int) -> tuple[GuardedStore, int, list[Any]]:
    """One reply in ten comes after the time limit, and each at another time."""
    delays = random.Random(2)
    fault_proxy.delay = lambda: delays.uniform(0, 0.005) if delays.random() < 0.9 else delays.uniform(0.02, 0.06)
    guarded = GuardedStore(open_store(fault_proxy.url, timeout=0.03), clock=jumping_clock())
    num_cancelled, wrong = asyncio.run(cancel_at_random(guarded, num_cancels))
    guarded.close()
    return guarded, num_cancelled, wrong


def test_random_cancels_and_delays_give_no_wrong_value(fault_proxy: FaultProxy) -> None:
    guarded, num_cancelled, wrong = traffic_with_cancels(fault_proxy, repeats("result cache cancels"))
    assert wrong == []
    assert num_cancelled >= repeats("result cache cancels")
    assert guarded.hits > num_cancelled / 20 and guarded.failures > num_cancelled / 50


def test_a_client_that_uses_connections_after_a_failure_is_caught(fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the fault of redis-py's CVE-2023-28858, planted into the store."""
    from redis.connection import AbstractConnection

    from hasten.caching.redis_connection import RedisConnection

    kept = []
    with monkeypatch.context() as plant:
        plant.setattr(RedisConnection, "is_clean", True)
        plant.setattr(AbstractConnection, "disconnect", lambda self, *arguments, **options: kept.append(self))
        _, _, wrong = traffic_with_cancels(fault_proxy, 10_000)
    for connection in kept:
        connection.disconnect()
    assert any(isinstance(item, tuple) and item[1] != value_of(item[0]) for item in wrong)
