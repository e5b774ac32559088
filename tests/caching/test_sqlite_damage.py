"""Files that are no store, or a damaged one: one sentence when they are opened, one clause later, and never a wrong value."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.caching.naive_store import limits
from tests.exhaustive import repeats
from tests.small_disk import small_disk

from hasten.caching import sqlite_file, sqlite_store
from hasten.caching.base import StoreFailed
from hasten.caching.sqlite_store import SqliteStore
from hasten.core.errors import HastenError, InvalidOption

KEYS = [hashlib.sha256(b"%d" % index).digest() for index in range(60)]
PAGE = 4096
MAX_SECONDS = 30.0  # of a case; a search without end takes longer on any machine


def value_of(key: bytes) -> bytes:
    content = key * (key[0] * 2)
    return hashlib.sha256(content).digest() + content


def is_intact(value: bytes) -> bool:
    """Return whether a value is one that a caller would accept, of any key."""
    return value[:32] == hashlib.sha256(value[32:]).digest()


@pytest.fixture(autouse=True)
def without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, and a sync waits for the disk."""
    monkeypatch.setattr(sqlite_file, "SYNCHRONOUS", "OFF")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of a closed store and of one whose newest values stand only in its log."""
    closed, crashed = tmp_path_factory.mktemp("closed"), tmp_path_factory.mktemp("crashed")
    store = SqliteStore(closed / "results.sqlite", limits(max_bytes=10**7, max_entries=1000, ttl=1e8))
    for key in KEYS[:50]:
        store.put(key, value_of(key))
    for key in KEYS[:20]:
        store.get(key)
    store.close()
    store = SqliteStore(closed / "results.sqlite", limits(max_bytes=10**7, max_entries=1000, ttl=1e8))
    for key in KEYS[40:]:
        store.put(key, value_of(key))
    for name in ("results.sqlite", "results.sqlite-wal"):
        shutil.copy(closed / name, crashed)
    store.close()
    return [closed, crashed]


def damage(content: bytearray, rng: random.Random) -> None:
    """Change a file in one of the ways in which files are changed."""
    kind, num_pages = rng.randrange(7), max(1, len(content) // PAGE)
    page = rng.randrange(num_pages) * PAGE
    if kind == 0:
        del content[rng.randrange(len(content)) :]
    elif kind == 1:
        for _ in range(rng.choice((1, 5, 50))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 2:  # the header of a page: its type, its number of cells and where they are
        for _ in range(3):
            content[min(page + rng.randrange(100), len(content) - 1)] = rng.choice((0, 1, 5, 10, 13, 127, 255))
    elif kind == 3:
        content[page : page + PAGE] = rng.choice((bytes(PAGE), b"\xff" * PAGE, rng.randbytes(PAGE)))
    elif kind == 4:
        other = rng.randrange(num_pages) * PAGE
        content[page : page + PAGE] = content[other : other + PAGE]
    elif kind == 5:
        content[rng.randrange(min(100, len(content)))] = rng.randrange(256)
    else:
        start = rng.randrange(len(content))
        content[start:start] = rng.randbytes(rng.choice((1, 100, PAGE)))


def result_of(call: Callable[[], object], documented: type[Exception]) -> tuple[object, str]:
    """Return what a call returns, and the message of its documented error. Others are raised."""
    try:
        return call(), ""
    except documented as error:
        return None, str(error)


def use_everything(file: Path) -> str:
    """Call every method; return what became of it. An ``AssertionError`` means a wrong value."""
    store, refusal = result_of(lambda: SqliteStore(file, limits(max_bytes=10**6, max_entries=70, timeout=0.5)), HastenError)
    if not isinstance(store, SqliteStore):
        assert "result_cache" in refusal and "\n" not in refusal
        return "refused"
    possible = {key: [value_of(key)] for key in KEYS}
    messages = []

    def check(key: bytes) -> None:
        value, message = result_of(lambda: store.get(key), StoreFailed)
        messages.append(message)
        assert value is None or not is_intact(value) or value in possible[key]

    def put(key: bytes, value: bytes) -> None:
        _, message = result_of(lambda: store.put(key, value), StoreFailed)
        messages.append(message)
        possible[key] = [value, *(possible.get(key, []) if message else [])]  # what fails may change nothing
        check(key)

    for key in KEYS:
        check(key)
    messages += [result_of(lambda: list(store.entries()), StoreFailed)[1], result_of(store.usage, StoreFailed)[1]]
    for index, key in enumerate([*KEYS[30:], *(bytes([index]) * 32 for index in range(20))]):
        put(key, value_of(bytes([index]) * 32))
    messages += [result_of(lambda: store.remove(KEYS[59]), StoreFailed)[1], result_of(store.clear, StoreFailed)[1]]
    put(KEYS[0], value_of(KEYS[1]))
    store.close()
    assert all("\n" not in message for message in messages)
    return "failed" if any(messages) else "worked"


def test_a_damaged_file_gives_only_documented_errors_and_no_wrong_value(stores: list[Path], tmp_path: Path) -> None:
    outcomes = []
    for seed in range(repeats("sqlite damage")):
        rng = random.Random(seed)
        folder = Path(shutil.copytree(rng.choice(stores), tmp_path / str(seed)))
        victim = folder / rng.choice(sorted(os.listdir(folder)))
        content = bytearray(victim.read_bytes())
        damage(content, rng)
        victim.write_bytes(content)
        start = time.monotonic()
        outcomes.append(use_everything(folder / "results.sqlite"))
        assert time.monotonic() - start < MAX_SECONDS, seed
        shutil.rmtree(folder)
    assert {outcomes.count(outcome) > len(outcomes) / 20 for outcome in ("worked", "failed", "refused")} == {True}


def test_a_file_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    text = b"Dear diary, today I wrote no SQLite file. " * 100
    connection = sqlite3.connect(tmp_path / "other")
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    other = (tmp_path / "other").read_bytes()
    connection.execute("PRAGMA application_id = 7")
    connection.close()
    numbered = (tmp_path / "other").read_bytes()
    store = SqliteStore(tmp_path / "store", limits())
    store.close()
    newer = bytearray((tmp_path / "store").read_bytes())
    newer[60:64] = (2).to_bytes(4, "big")  # user_version
    for content, says in (
        (text, "no SQLite file"),
        (text[:10], "no SQLite file"),
        (other, "database of another program"),
        (numbered, "database of another program"),
        (bytes(newer), "version 2 of the tables, and this hasten reads version 1"),
    ):
        file.write_bytes(content)
        with pytest.raises(InvalidOption, match=says) as error:
            SqliteStore(file, limits())
        assert str(file) in str(error.value) and "Choose another file" in str(error.value)
        assert file.read_bytes() == content


def test_an_empty_file_becomes_a_store_also_after_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    SqliteStore(file, limits()).close()
    connection = sqlite3.connect(tmp_path / "bare")
    connection.execute("PRAGMA journal_mode = WAL")  # writes a header
    connection.close()
    assert (tmp_path / "bare").stat().st_size > 0
    store = SqliteStore(tmp_path / "bare", limits())
    store.put(KEYS[0], b"value")
    store.close()
    assert file.stat().st_size > 0


def test_a_damaged_store_says_how_to_start_anew(tmp_path: Path) -> None:
    file = tmp_path / "file"
    store = SqliteStore(file, limits())
    store.put(KEYS[0], b"value")
    store.close()
    sound = file.read_bytes()
    contents = [sound[:-PAGE], sound[: 2 * PAGE]]
    for statement in (
        "UPDATE totals SET num_bytes = 7",
        "DELETE FROM totals",
        "CREATE TRIGGER hostile AFTER INSERT ON entries BEGIN DELETE FROM records; END",
    ):
        file.write_bytes(sound)
        changed = sqlite3.connect(file, isolation_level=None)
        changed.execute(statement)
        changed.close()
        contents.append(file.read_bytes())
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(HastenError, match="because the file is damaged") as error:
            SqliteStore(file, limits())
        assert "Remove it together with its -wal and -shm files" in str(error.value)
        assert file.read_bytes() == content


def test_keys_out_of_order_do_not_list_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "file", limits())
    store.put(KEYS[0], b"value")
    monkeypatch.setattr(sqlite_store, "_LIST", sqlite_store._LIST.replace("key > ?", "? NOT NULL"))  # finds the same page again
    entries = store.entries()
    assert next(entries).key == KEYS[0]
    with pytest.raises(StoreFailed, match="damaged"):
        next(entries)
    store.close()


def test_an_entry_that_cannot_be_evicted_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "file", limits(max_entries=1))
    store.put(KEYS[0], b"value")
    monkeypatch.setitem(sqlite_store._NEXT_TO_EVICT, "lru", "SELECT x'00'")  # an index that holds what the table does not
    with pytest.raises(StoreFailed, match="damaged"):
        store.put(KEYS[1], b"value")
    store.close()


def test_values_of_wrong_types_are_damage(tmp_path: Path) -> None:
    """SQLite checks types when it writes, not when it reads."""
    store = SqliteStore(tmp_path / "file", limits())
    store.put(KEYS[0], b"value")
    other = sqlite3.connect(tmp_path / "file", isolation_level=None)
    for change in ("num_bytes = 'many'", "hits = x'00'", "expires = 'never'", "key = x'01'"):
        other.execute(f"UPDATE entries SET {change}")
        with pytest.raises(StoreFailed, match="damaged"):
            list(store.entries())
        other.execute("DELETE FROM entries")
        other.execute("UPDATE totals SET num_bytes = 0")
        store.put(KEYS[0], b"value")
    other.execute("DELETE FROM totals")
    with pytest.raises(StoreFailed, match="damaged"):
        store.put(KEYS[0], b"value")
    other.close()
    store.close()


def test_opening_tries_again_where_sqlite_refuses_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    failures = [busy, busy]
    use_log = sqlite_file._use_log

    def refuse_twice(connection: sqlite3.Connection) -> None:
        if failures:
            raise failures.pop()
        use_log(connection)

    monkeypatch.setattr(sqlite_file, "_use_log", refuse_twice)
    store = SqliteStore(tmp_path / "file", limits())
    store.put(KEYS[0], b"value")
    assert store.get(KEYS[0]) == b"value"
    store.close()


@contextlib.contextmanager
def without_privileges() -> Iterator[Path]:
    """Give an ordinary user's folder that may be read and not written."""
    is_root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())
    SqliteStore(folder / "file", limits()).close()
    (folder / "file").chmod(0o444)
    folder.chmod(0o555)
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_files_that_cannot_be_used_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "OPEN_TIMEOUT", 0.05)
    SqliteStore(tmp_path / "locked", limits()).close()
    other = sqlite3.connect(tmp_path / "locked", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HastenError, match="because the file is locked by another process"):
        SqliteStore(tmp_path / "locked", limits())
    other.close()
    SqliteStore(tmp_path / "locked", limits()).close()
    with small_disk(1000), pytest.raises(HastenError, match="because the disk failed or is full"):
        SqliteStore(tmp_path / "full", limits())
    SqliteStore(tmp_path / "full", limits()).close()
    with without_privileges() as folder:
        with pytest.raises(HastenError, match=r"because the file (is read-only|cannot be opened)"):
            SqliteStore(folder / "file", limits())
        with pytest.raises(InvalidOption, match="cannot be made"):
            SqliteStore(folder / "new", limits())


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidOption, match="no ordinary file"):
            SqliteStore(path, limits())
    for path in (tmp_path / "dangling", tmp_path / "file" / "below", "a\0b", "~no-such-user/x", tmp_path / ("a" * 300)):
        with pytest.raises(InvalidOption, match="cannot be made"):
            SqliteStore(path, limits())
