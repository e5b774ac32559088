"""``NaiveStore``: what a result store does, in the fewest lines; and random operations that compare stores with it."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

from hasten.caching.base import ResultStore, StoredEntry, StoreLimits, StoreUsage

SIZES = (0, 20, 50, 50, 100, 100, 100, 200, 200, 200, 400, 400, 1000, 3000)  # bytes of random values


def limits(**changes: object) -> StoreLimits:
    return StoreLimits(**{"ttl": 100.0, "max_bytes": 10_000, "max_entries": 10, "eviction": "lru", "timeout": 10.0, **changes})


class Clock:
    """A clock that only a test moves. Seconds since 1970."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Kept:
    key: bytes
    value: bytes
    expires: float
    hits: int
    used: int  # when it was last used, in operations

    @property
    def num_bytes(self) -> int:
        return len(self.key) + len(self.value)


class NaiveStore:
    """A list that is searched from end to end. ``kept`` never holds an expired value."""

    def __init__(self, limits: StoreLimits, clock: Clock) -> None:
        self.limits, self.clock = limits, clock
        self.kept: list[Kept] = []
        self.time = 0
        self.num_evicted = 0

    def expire(self) -> None:
        self.time += 1
        self.kept = [kept for kept in self.kept if kept.expires > self.clock.now]

    def get(self, key: bytes) -> bytes | None:
        self.expire()
        for kept in self.kept:
            if kept.key == key:
                kept.hits, kept.used = kept.hits + 1, self.time
                return kept.value
        return None

    def put(self, key: bytes, value: bytes) -> None:
        self.remove(key)
        new = Kept(key, value, self.clock.now + self.limits.ttl, 0, self.time)
        if new.num_bytes > self.limits.max_bytes:
            return
        while (
            len(self.kept) + 1 > self.limits.max_entries
            or sum(kept.num_bytes for kept in self.kept) + new.num_bytes > self.limits.max_bytes
        ):
            lfu = self.limits.eviction == "lfu"
            self.kept.remove(min(self.kept, key=lambda kept: (kept.hits if lfu else 0, kept.used)))
            self.num_evicted += 1
        self.kept.append(new)

    def remove(self, key: bytes) -> None:
        self.expire()
        self.kept = [kept for kept in self.kept if kept.key != key]

    def clear(self) -> int:
        self.expire()
        num_removed, self.kept = len(self.kept), []
        return num_removed

    def entries(self) -> set[StoredEntry]:
        self.expire()
        return {StoredEntry(key=k.key, num_bytes=k.num_bytes, expires=k.expires, hits=k.hits) for k in self.kept}

    def usage(self) -> StoreUsage:
        self.expire()
        return StoreUsage(num_entries=len(self.kept), num_bytes=sum(kept.num_bytes for kept in self.kept))


def compare(store: ResultStore, naive: NaiveStore, rng: random.Random, num_operations: int) -> None:
    """Do the same random operations on both; every answer must be the same."""
    keys = [bytes([index]) * 32 for index in range(24)]
    weights = [1 / (1 + index) for index in range(24)]  # some keys are popular, so that hits differ
    for number in range(num_operations):
        (key,) = rng.choices(keys, weights)
        action = rng.random()
        if action < 0.45:
            assert store.get(key) == naive.get(key), number
        elif action < 0.85:
            value = b"%d:" % number + bytes(rng.choice(SIZES))
            store.put(key, value)
            naive.put(key, value)
        elif action < 0.90:
            store.remove(key)
            naive.remove(key)
        elif action < 0.9025:
            assert store.clear() == naive.clear()
        elif action < 0.95:
            naive.clock.now += naive.limits.ttl * rng.choice((0.0, 0.01, 0.1, 0.1, 0.3, 0.5, 1.0, 5.0))
        elif action < 0.975:
            assert store.usage() == naive.usage(), number
        else:
            listed = list(store.entries())
            assert len(listed) == len(set(listed))
            assert set(listed) == naive.entries(), number
        assert store.num_evicted == naive.num_evicted, number


def mix(store: ResultStore, num_threads: int, num_operations: int) -> list[object]:
    """Run mixed operations from several threads on a store of 3,000 bytes and 20 entries; return everything that was wrong."""
    keys = [bytes([index]) * 32 for index in range(40)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(num_operations):
                key, action = rng.choice(keys), rng.random()
                if action < 0.5:
                    store.put(key, key * rng.randrange(1, 8))
                elif action < 0.9:
                    value = store.get(key)
                    wrong.extend([] if value is None or set(value) == set(key) else [value])
                elif action < 0.95:
                    store.remove(key)
                elif action < 0.98:
                    usage = store.usage()
                    wrong.extend([] if usage.num_bytes <= 3000 and usage.num_entries <= 20 else [usage])
                elif action < 0.995:
                    wrong.extend(entry for entry in store.entries() if entry.key not in keys)
                else:
                    store.clear()
            store.put(keys[seed], keys[seed])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
