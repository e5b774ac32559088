"""``ResultStore``: where a result cache keeps its values.

It knows bytes and no requests. A store is one file, one class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

KEY_BYTES = 32  # a SHA-256


class StoreFailed(Exception):
    """The store cannot be read or written now; the message is one clause that says why.

    Stores raise nothing else after they are open. No failure ends a request: the caller counts it and computes.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """What a store keeps, and for how long. Times are in seconds."""

    ttl: float  # since the value was put; reading does not extend it
    max_bytes: int  # of all keys and values
    max_entries: int
    eviction: str  # "lru" or "lfu": which values a full store drops
    timeout: float  # of one call


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """One entry of a store, as ``hasten cache ls`` shows it. Times are in seconds since 1970."""

    key: bytes
    num_bytes: int  # of the key and the value
    expires: float
    hits: int | None = None  # None: the store does not count them


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    num_entries: int
    num_bytes: int  # of keys and values


class ResultStore(Protocol):
    """Values by key, for any number of threads.

    Every method may raise ``StoreFailed``, within the time limit.
    """

    does_io: bool  # whether a call may take longer than a few microseconds
    counts_usage: bool  # whether ``usage`` reads two numbers, and does not list the keys

    def get(self, key: bytes) -> bytes | None:
        """Return the value, and count its use; None if there is none or it has expired."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Store a value; afterwards it survives the end of this process, unless the store is in memory.

        A value above ``max_bytes`` is not stored. Others are evicted until the limits hold.
        """
        ...

    def remove(self, key: bytes) -> None:
        """Remove a value, if it is there."""
        ...

    def clear(self) -> int:
        """Remove all values of hasten, and return how many there were."""
        ...

    def entries(self) -> Iterator[StoredEntry]:
        """Yield the entries that have not expired, in any order."""
        ...

    def usage(self) -> StoreUsage: ...

    @property
    def num_evicted(self) -> int:
        """How many values this object has evicted because of the limits; expired ones do not count."""
        ...

    def close(self) -> None:
        """Release files and connections. Idempotent; never raises."""
        ...
