"""``open_file``: makes or checks a file of results. It knows the tables, not what a store does.

::

    entries   key, record_id, num_bytes, expires, hits, last_use      no values: the order of eviction and uses cost little to write
    records   record_id, record = key + value                         the key again: a damaged file gives no value of another key
    totals    num_entries, num_bytes                                  kept by triggers

A process that is killed loses nothing that it has committed, because the system has the pages of the log. ``synchronous=NORMAL``
syncs the log to the disk before its pages are copied into the file: a power cut may lose the last results, which can be computed
again, and does not damage the file. A sync at every commit would make a put wait for the disk.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from pathlib import Path

from hasten.caching.base import StoreFailed
from hasten.core.errors import HastenError, InvalidOption, printable, show

APPLICATION_ID = 0x48537452  # "HStR"
VERSION = 1  # of the tables
MAX_RECORD = 1_000_000_000 - 1_000  # bytes; SQLite stores no longer blob
SYNCHRONOUS = "NORMAL"
OPEN_TIMEOUT = 5.0  # seconds that opening waits for other processes
INSTRUCTIONS_PER_CHECK = 10_000  # of SQLite's virtual machine: about a millisecond
ANOTHER_FILE = "Choose another file with result_cache=sqlite:PATH"
USE_OR_CHANGE = "Make it usable, or choose another file with result_cache=sqlite:PATH"
START_ANEW = "Remove it together with its -wal and -shm files; its results are then computed again"


SCHEMA = (
    "CREATE TABLE entries (key BLOB PRIMARY KEY, record_id INTEGER NOT NULL, num_bytes INTEGER NOT NULL,"
    " expires REAL NOT NULL, hits INTEGER NOT NULL, last_use INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE records (record_id INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    "CREATE TABLE totals (num_entries INTEGER NOT NULL, num_bytes INTEGER NOT NULL)",
    "CREATE INDEX by_expiry ON entries (expires, num_bytes)",
    "CREATE INDEX by_use ON entries (last_use)",
    "CREATE INDEX by_hits ON entries (hits, last_use)",
    "CREATE TRIGGER count_entry AFTER INSERT ON entries BEGIN"
    " UPDATE totals SET num_entries = num_entries + 1, num_bytes = num_bytes + new.num_bytes; END",
    "CREATE TRIGGER drop_entry AFTER DELETE ON entries BEGIN"
    " DELETE FROM records WHERE record_id = old.record_id;"
    " UPDATE totals SET num_entries = num_entries - 1, num_bytes = num_bytes - old.num_bytes; END",
)
DAMAGED = "the file is damaged"
_FAILURES = {
    sqlite3.SQLITE_BUSY: "the file is locked by another process",
    sqlite3.SQLITE_LOCKED: "the file is locked by another process",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk failed or is full",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_INTERRUPT: "the call took longer than the time limit",
}


class Deadline:
    """When SQLite gives up. It asks now and then, also while it searches a damaged file without end."""

    def __init__(self) -> None:
        self._end = float("inf")

    def start(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def has_passed(self) -> bool:
        return time.monotonic() > self._end


class NotAStore(Exception):
    """The file is sound, but no file of results of this version; the message says what it is."""


def open_file(path: str | Path) -> Path:
    """Make the file unless it is there, check it, and return its absolute path.

    Only its owner may read a file made here.

    A file that is not of hasten is left as it is. Raises ``InvalidOption`` for it, and ``HastenError`` where a sound file cannot be
    used now, or is damaged.
    """
    absolute = _make_file(path)
    deadline = Deadline()
    deadline.start(OPEN_TIMEOUT)
    while True:
        try:
            connection = connect(absolute, OPEN_TIMEOUT, deadline)
            try:
                _check(connection)
                _use_log(connection)
            finally:
                connection.close()
            return absolute
        except NotAStore as error:
            raise InvalidOption(
                f"result_cache {error}", got=absolute, allowed="a file of hasten's results, or a new one", remedy=ANOTHER_FILE
            ) from None
        except StoreFailed as error:
            raise HastenError(f"result_cache cannot be opened, because {error}", got=absolute, remedy=_remedy(str(error))) from None
        except sqlite3.Error as error:
            # Two processes that make the same file at once would wait for each other; SQLite then refuses one at once.
            if _code(error) == sqlite3.SQLITE_BUSY and not deadline.has_passed():
                time.sleep(0.005)
                continue
            if _code(error) == sqlite3.SQLITE_NOTADB:
                raise InvalidOption("result_cache is no SQLite file", got=absolute, remedy=ANOTHER_FILE) from None
            clause = failure(error)
            raise HastenError(f"result_cache cannot be opened, because {clause}", got=absolute, remedy=_remedy(clause)) from None


def connect(path: Path, timeout: float, deadline: Deadline) -> sqlite3.Connection:
    """Return a connection for any thread, one at a time, to a file that exists. Raises ``sqlite3.Error``."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = bytes  # the tables hold no text; a damaged file may hold what is no UTF-8
    connection.set_progress_handler(deadline.has_passed, INSTRUCTIONS_PER_CHECK)
    try:
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        connection.execute("PRAGMA trusted_schema = OFF")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def failure(error: Exception) -> str:
    """Return in one clause why SQLite could not do something."""
    code = _code(error)
    if code == sqlite3.SQLITE_ERROR:  # the statements are right, so what they found in the file is not
        return f"{DAMAGED} ({printable(error)})"
    return _FAILURES.get(code, f"SQLite failed with {printable(error)}")


def _code(error: Exception) -> int:
    """Return the primary result code. Values that Python cannot read raise errors without one."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _remedy(clause: str) -> str:
    return START_ANEW if clause.startswith(DAMAGED) else USE_OR_CHANGE


def _make_file(path: str | Path) -> Path:
    try:
        absolute = Path(os.path.abspath(Path(path).expanduser()))
        absolute.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(absolute, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            # An existing file is not opened here: closing it would drop the locks that another store of this process holds.
            if not stat.S_ISREG(absolute.stat().st_mode):
                raise InvalidOption("result_cache is no ordinary file", got=absolute, remedy=ANOTHER_FILE) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidOption(f"result_cache cannot be made: {printable(error)}", got=show(str(path)), remedy=ANOTHER_FILE) from None
    return absolute


def _check(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file.

    Raises ``NotAStore`` or ``StoreFailed`` unless the file then has them.
    """
    connection.execute("BEGIN IMMEDIATE")  # fails on a read-only file; changes nothing in a file of another program
    try:
        ((application_id,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        tables = [text for (text,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY rowid")]
        if (application_id, version, tables) == (0, 0, []):
            for statement in (*SCHEMA, "INSERT INTO totals VALUES (0, 0)"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif application_id != APPLICATION_ID:
            raise NotAStore("is a database of another program")
        elif version != VERSION:
            raise NotAStore(f"has version {version} of the tables, and this hasten reads version {VERSION}")
        elif tables != [statement.encode() for statement in SCHEMA]:
            raise StoreFailed(DAMAGED)
        totals = list(connection.execute("SELECT num_entries, num_bytes FROM totals"))
        if totals != list(connection.execute("SELECT count(*), coalesce(sum(num_bytes), 0) FROM entries")):
            raise StoreFailed(DAMAGED)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _use_log(connection: sqlite3.Connection) -> None:
    """Turn WAL on; the file remembers it."""
    ((mode,),) = connection.execute("PRAGMA journal_mode = WAL")
    if mode != b"wal":
        raise StoreFailed("the file system has no shared memory, which SQLite needs for its write-ahead log")
