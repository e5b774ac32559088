"""``SqliteStore``: values in one SQLite file, for the threads and processes of one machine."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hasten.caching.base import KEY_BYTES, StoredEntry, StoreFailed, StoreLimits, StoreUsage
from hasten.caching.sqlite_file import DAMAGED, MAX_RECORD, Deadline, connect, failure, open_file

EXPIRED_PER_PUT = 64  # expired values that a put removes beyond what it needs
USES_PER_PUT = 64  # uses that a put writes down beyond what it needs
USES_PER_TRANSACTION = 1000
EVICTED_PER_TRANSACTION = 128  # other processes get their turn in between
LISTED_PER_CALL = 1000
PATIENCE = 1.0  # seconds beyond the time limit before a call is broken off; only in a damaged file does one take so long

_GET = "SELECT record FROM entries JOIN records USING (record_id) WHERE key = ? AND expires > ?"
_LIST = "SELECT key, num_bytes, expires, hits FROM entries WHERE key > ? AND expires > ? ORDER BY key LIMIT ?"
_USAGE = (
    "SELECT num_entries - (SELECT count(*) FROM entries WHERE expires <= :now),"
    " num_bytes - (SELECT coalesce(sum(num_bytes), 0) FROM entries WHERE expires <= :now) FROM totals"
)
_DELETE_EXPIRED = "DELETE FROM entries WHERE key IN (SELECT key FROM entries WHERE expires <= ? LIMIT ?)"
_NEXT_TO_EVICT = {
    "lru": "SELECT key FROM entries ORDER BY last_use LIMIT 1",
    "lfu": "SELECT key FROM entries ORDER BY hits, last_use LIMIT 1",
}


class _Connection:
    """A connection of SQLite for one thread at a time, made at its first use."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._deadline = Deadline()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to the calling thread; raise ``StoreFailed`` for any failure of SQLite."""
        if not self._lock.acquire(timeout=self._timeout):
            raise StoreFailed("other threads use the file for longer than the time limit")
        try:
            if self._is_closed:
                raise StoreFailed("the store is closed")
            self._deadline.start(self._timeout + PATIENCE)
            if self._connection is None:
                self._connection = connect(self._path, self._timeout, self._deadline)
            yield self._connection
        except (sqlite3.Error, OverflowError) as error:
            raise StoreFailed(failure(error)) from None
        finally:
            self._lock.release()

    def close(self) -> None:
        # Where another thread holds the lock for longer, at the end of the process perhaps for ever, the system closes the file.
        if not self._lock.acquire(timeout=self._timeout):
            return
        try:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()
        except sqlite3.Error:
            pass  # what could not be written to the file stays in its log
        finally:
            self._connection = None
            self._lock.release()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit at the end, or undo everything after an exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class _Uses:
    """Hits that are not in the file yet, so that a get writes nothing.

    A put and ``close`` write them down.

    A use has a time in microseconds since 1970, which orders the uses of all processes; no two of one process have the same.
    Uses that cannot be written are lost, no more.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._latest = 0
        self._unsaved: dict[bytes, tuple[int, int]] = {}  # key -> hits, time; in the order of time

    def now(self) -> int:
        """Return the time of a use that happens now."""
        with self._lock:
            return self._next()

    def add(self, key: bytes) -> None:
        with self._lock:
            hits, _ = self._unsaved.pop(key, (0, 0))
            self._unsaved[key] = (hits + 1, self._next())

    def hits(self, key: bytes) -> int:
        with self._lock:
            return self._unsaved.get(key, (0, 0))[0]

    def num_unsaved(self) -> int:
        """Return how many keys have uses that are not written yet."""
        with self._lock:
            return len(self._unsaved)

    def forget(self, key: bytes) -> None:
        with self._lock:
            self._unsaved.pop(key, None)

    def save(self, connection: sqlite3.Connection, limit: int | None = None, key: bytes | None = None) -> int:
        """Write the uses of one key, or the oldest ones up to ``limit``, and return of how many keys."""
        with self._lock:
            keys = list(itertools.islice(self._unsaved, limit)) if key is None else [key] if key in self._unsaved else []
            rows = [(*self._unsaved.pop(each), each) for each in keys]
        connection.executemany("UPDATE entries SET hits = hits + ?, last_use = max(last_use, ?) WHERE key = ?", rows)
        return len(rows)

    def _next(self) -> int:
        self._latest = max(self._latest + 1, int(self._clock() * 1e6))
        return self._latest


class SqliteStore:
    """A ``ResultStore`` in a local file; what a put has stored survives a kill of the process.

    The limits count keys and values; the file is larger, and its log takes some megabytes more. Raises ``InvalidOption`` for a path
    that holds something else, and ``HastenError`` for a file that cannot be used now, or is damaged.
    """

    does_io = True
    counts_usage = True

    def __init__(self, path: str | Path, limits: StoreLimits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._uses = _Uses(clock)
        self._num_evicted = 0
        file = open_file(path)
        self._reader = _Connection(file, limits.timeout)  # does not wait for the writer
        self._writer = _Connection(file, limits.timeout)

    def get(self, key: bytes) -> bytes | None:
        with self._reader.use() as connection:
            rows = list(connection.execute(_GET, (key, self._clock())))
        if not rows:
            return None
        ((record,),) = rows
        if not isinstance(record, bytes) or record[:KEY_BYTES] != key:
            raise StoreFailed(DAMAGED)
        self._uses.add(key)
        return record[KEY_BYTES:]

    def put(self, key: bytes, value: bytes) -> None:
        assert len(key) == KEY_BYTES
        end = time.monotonic() + self._limits.timeout
        while not self._put_if_room(key, key + value, end):
            if time.monotonic() > end:  # what was evicted stays evicted: a later put has less to do
                raise StoreFailed("the call took longer than the time limit")

    def remove(self, key: bytes) -> None:
        self._uses.forget(key)
        with self._writer.use() as connection, _transaction(connection):
            connection.execute("DELETE FROM entries WHERE key = ?", (key,))

    def clear(self) -> int:
        num_removed = 0
        while removed := self._clear_some():
            num_removed += sum(expires > self._clock() for expires in removed)
        with contextlib.suppress(StoreFailed), self._writer.use() as connection:  # give the space back, if nothing else reads now
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return num_removed

    def entries(self) -> Iterator[StoredEntry]:
        return self._pages(self._page_after(b""))

    def usage(self) -> StoreUsage:
        with self._reader.use() as connection:
            rows = list(connection.execute(_USAGE, {"now": self._clock()}))
        num_entries, num_bytes = _one_pair(rows)
        return StoreUsage(num_entries=num_entries, num_bytes=num_bytes)

    @property
    def num_evicted(self) -> int:
        return self._num_evicted

    def close(self) -> None:
        with contextlib.suppress(StoreFailed):  # uses are worth no error
            while self._uses.num_unsaved():
                with self._writer.use() as connection, _transaction(connection):
                    self._uses.save(connection, USES_PER_TRANSACTION)
        self._reader.close()
        self._writer.close()

    def _put_if_room(self, key: bytes, record: bytes, end: float) -> bool:
        """Store a record in place of what the key had; return False if more must be evicted first."""
        now = self._clock()
        self._uses.forget(key)
        with self._writer.use() as connection:
            with _transaction(connection):
                self._uses.save(connection, USES_PER_PUT)
                connection.execute("DELETE FROM entries WHERE key = ?", (key,))
                connection.execute(_DELETE_EXPIRED, (now, EXPIRED_PER_PUT))
                if len(record) > min(self._limits.max_bytes, MAX_RECORD):
                    return True
                num_evicted, has_room = self._make_room(connection, len(record), now, end)
                if has_room:
                    cursor = connection.execute("INSERT INTO records (record) VALUES (?)", (record,))
                    row = (key, cursor.lastrowid, len(record), now + self._limits.ttl, self._uses.now())
                    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, 0, ?)", row)
            self._num_evicted += num_evicted
        return has_room

    def _make_room(self, connection: sqlite3.Connection, num_bytes: int, now: float, end: float) -> tuple[int, bool]:
        """Evict until a record fits, up to some number or time.

        Return how many were evicted, and whether it fits.
        """
        num_evicted = 0
        for step in range(EVICTED_PER_TRANSACTION):
            entries, used_bytes = _one_pair(list(connection.execute("SELECT num_entries, num_bytes FROM totals")))
            if entries < self._limits.max_entries and used_bytes + num_bytes <= self._limits.max_bytes:
                return num_evicted, True
            if step > 0 and time.monotonic() > end:
                break
            if connection.execute(_DELETE_EXPIRED, (now, 1)).rowcount:
                continue
            victims = list(connection.execute(_NEXT_TO_EVICT[self._limits.eviction]))
            if victims and self._uses.save(connection, key=victims[0][0]):
                continue  # it was used since, and may not be the next one
            if not victims or not connection.execute("DELETE FROM entries WHERE key = ?", victims[0]).rowcount:
                raise StoreFailed(DAMAGED)  # the totals or an index are wrong
            num_evicted += 1
        return num_evicted, False

    def _clear_some(self) -> list[float]:
        """Remove some entries; return when they expire. No entries: the store is empty."""
        with self._writer.use() as connection, _transaction(connection):
            rows = list(connection.execute("SELECT key, expires FROM entries LIMIT ?", (EVICTED_PER_TRANSACTION,)))
            cursor = connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key, _ in rows])
            if rows and (cursor.rowcount < len(rows) or not all(isinstance(expires, float) for _, expires in rows)):
                raise StoreFailed(DAMAGED)
        for key, _ in rows:
            self._uses.forget(key)
        return [expires for _, expires in rows]

    def _pages(self, page: list[StoredEntry]) -> Iterator[StoredEntry]:
        while page:
            yield from page
            page = self._page_after(page[-1].key)

    def _page_after(self, key: bytes) -> list[StoredEntry]:
        """Return the next entries by key."""
        with self._reader.use() as connection:
            rows = list(connection.execute(_LIST, (key, self._clock(), LISTED_PER_CALL)))
        page = []
        for found, num_bytes, expires, hits in rows:
            are_numbers = isinstance(expires, float) and isinstance(num_bytes, int) and isinstance(hits, int)
            if not are_numbers or not isinstance(found, bytes) or len(found) != KEY_BYTES or found <= key:
                raise StoreFailed(DAMAGED)
            key = found
            page.append(StoredEntry(key=key, num_bytes=num_bytes, expires=expires, hits=hits + self._uses.hits(key)))
        return page


def _one_pair(rows: list[Any]) -> tuple[int, int]:
    """Return the only row, of two integers. Raises ``StoreFailed`` if the file holds something else."""
    if len(rows) != 1 or not all(isinstance(number, int) for number in rows[0]):
        raise StoreFailed(DAMAGED)
    entries, num_bytes = rows[0]
    return entries, num_bytes
