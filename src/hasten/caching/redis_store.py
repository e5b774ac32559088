"""``RedisStore``: values in a Redis server, which several processes and machines can share."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hasten.caching.base import KEY_BYTES, StoredEntry, StoreFailed, StoreLimits, StoreUsage
from hasten.caching.redis_url import parse_redis_url
from hasten.core.errors import InvalidOption

if TYPE_CHECKING:
    from hasten.caching.redis_connection import RedisConnection, Reply

PREFIX = b"hasten:result:1:"  # 1: the layout of names and values
SCAN_COUNT = 1000  # names per round trip
SCAN_SECONDS = 60.0  # of listing all names, which takes one round trip per thousand names of the database
_NAME = re.compile(re.escape(PREFIX) + b"[0-9a-f]{%d}" % (2 * KEY_BYTES))


class RedisStore:
    """A store whose size and eviction are the server's: its ``maxmemory`` and ``maxmemory-policy``.

    So ``max_bytes``, ``max_entries`` and ``eviction`` of the limits have no effect, and ``num_evicted`` is 0. With the policy
    ``noeviction`` a full server refuses values, a ``StoreFailed``; with ``allkeys-lru`` or ``allkeys-lfu`` it evicts some.
    Names start with ``hasten:result:1:``; no other name of the database is read or changed.

    The time limit is of one call as a whole, connecting included; of ``clear``, ``entries`` and ``usage`` it is of each round trip,
    and all of one such call ends within a minute. Nothing is tried twice. Opening does not connect, so that an engine starts
    without its cache.
    """

    does_io = True
    counts_usage = False

    def __init__(self, url: str, limits: StoreLimits) -> None:
        """Raises ``InvalidOption`` for a URL that cannot be, or if the package ``redis`` is not installed."""
        self._url = parse_redis_url(url)
        try:
            from hasten.caching.redis_connection import ErrorReply, RedisConnection
        except ImportError as error:
            raise InvalidOption(
                "a result cache in Redis needs a package that is not installed",
                got=error,
                remedy='Run pip install "hasten[redis]", or keep results in a file with sqlite:',
            ) from None
        self._new_connection, self._error_reply = RedisConnection, ErrorReply
        self._timeout = limits.timeout
        self._ttl = max(1, round(limits.ttl * 1000))  # milliseconds
        # Connections that no call uses. One whose call was cut short is closed instead: its reply would answer the next call.
        self._idle: deque[RedisConnection] = deque()
        self._is_closed = False

    def get(self, key: bytes) -> bytes | None:
        reply = self._call((b"GET", _name(key)))[0]
        if reply is None or isinstance(reply, bytes):
            return reply
        if isinstance(reply, self._error_reply) and reply.message.startswith("WRONGTYPE"):
            return None  # not hasten's, and replaced by the next ``put``
        raise self._unexpected(reply)

    def put(self, key: bytes, value: bytes) -> None:
        reply = self._call((b"SET", _name(key), value, b"PX", self._ttl))[0]
        if reply != b"OK":
            raise self._unexpected(reply)

    def remove(self, key: bytes) -> None:
        self._count((b"UNLINK", _name(key)))

    def clear(self) -> int:
        return sum(self._count((b"UNLINK", *names)) for names in self._scan() if names)

    def entries(self) -> Iterator[StoredEntry]:
        for names in self._scan():
            replies = self._call(*(command for name in names for command in ((b"STRLEN", name), (b"PTTL", name)))) if names else []
            for name, size, milliseconds in zip(names, replies[::2], replies[1::2], strict=True):
                # A value of another type or without an end is not hasten's; one may also have gone since it was listed.
                if isinstance(size, int) and isinstance(milliseconds, int) and milliseconds >= 0:
                    yield StoredEntry(
                        key=bytes.fromhex(name.removeprefix(PREFIX).decode()),
                        num_bytes=KEY_BYTES + size,
                        expires=time.time() + milliseconds / 1000,
                    )

    def usage(self) -> StoreUsage:
        sizes = [entry.num_bytes for entry in self.entries()]
        return StoreUsage(num_entries=len(sizes), num_bytes=sum(sizes))

    @property
    def num_evicted(self) -> int:
        return 0

    def close(self) -> None:
        self._is_closed = True
        while (connection := self._pop()) is not None:
            connection.close()

    def _scan(self) -> Iterator[list[bytes]]:
        """Yield hasten's names in lists, each name once. What comes or goes meanwhile may be missing."""
        end = time.monotonic() + SCAN_SECONDS
        cursor, seen = b"0", set[bytes]()  # Redis may list a name twice
        while True:
            reply = self._call((b"SCAN", cursor, b"MATCH", PREFIX + b"*", b"COUNT", SCAN_COUNT))[0]
            match reply:
                case [bytes(cursor), list(listed)]:
                    names = {name for name in listed if isinstance(name, bytes) and _NAME.fullmatch(name)} - seen
                case _:
                    raise self._unexpected(reply)
            seen |= names
            yield list(names)
            if cursor == b"0":
                return
            if time.monotonic() > end:
                raise StoreFailed(f"Redis at {self._url.name} did not list its names within {SCAN_SECONDS:g} s")

    def _count(self, command: tuple[bytes, ...]) -> int:
        reply = self._call(command)[0]
        if not isinstance(reply, int):
            raise self._unexpected(reply)
        return reply

    def _call(self, *commands: tuple[bytes | int, ...]) -> list[Reply]:
        """Send commands in one round trip, on a connection that no other call uses meanwhile."""
        if self._is_closed:
            raise StoreFailed("the Redis result cache is closed")
        connection = self._ready_connection()
        try:
            return connection.call(commands, self._timeout)
        finally:
            if connection.is_clean and not self._is_closed:
                self._idle.append(connection)
            else:
                connection.close()

    def _ready_connection(self) -> RedisConnection:
        while (connection := self._pop()) is not None:
            if connection.is_ready():
                return connection
            connection.close()
        return self._new_connection(self._url)

    def _pop(self) -> RedisConnection | None:
        try:
            return self._idle.pop()
        except IndexError:  # asking first would race with other threads
            return None

    def _unexpected(self, reply: Reply) -> StoreFailed:
        if isinstance(reply, self._error_reply):
            return StoreFailed(f"Redis at {self._url.name}: {reply.message}")
        return StoreFailed(f"Redis at {self._url.name} gave a reply of an unexpected kind")


def _name(key: bytes) -> bytes:
    return PREFIX + key.hex().encode()
