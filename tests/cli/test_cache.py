"""``hasten cache``: lists, sums and clears what a store holds; one sentence where it cannot."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hasten.caching.base import StoredEntry, StoreFailed, StoreLimits, StoreUsage

NOW = 1_000_000.0
ENTRIES = [
    StoredEntry(key=bytes(range(32)), num_bytes=1_500, expires=NOW + 30, hits=2),
    StoredEntry(key=bytes(range(32, 64)), num_bytes=2_000_000, expires=NOW + 5400, hits=None),
    StoredEntry(key=b"\x1b[2J" + bytes(28), num_bytes=100, expires=NOW + 86_400, hits=3),
]


class FakeStore:
    """A store of given entries that may fail."""

    does_io = True
    num_evicted = 0

    def __init__(self, entries: list[StoredEntry], failure: str | None = None) -> None:
        self.stored, self._failure, self.is_closed = entries, failure, False

    def entries(self) -> Iterator[StoredEntry]:
        yield from self.stored
        if self._failure is not None:
            raise StoreFailed(self._failure)

    def clear(self) -> int:
        if self._failure is not None:
            raise StoreFailed(self._failure)
        count, self.stored = len(self.stored), []
        return count

    def get(self, key: bytes) -> bytes | None:
        raise AssertionError("no command reads a value")

    def put(self, key: bytes, value: bytes) -> None:
        raise AssertionError("no command stores a value")

    def remove(self, key: bytes) -> None:
        raise AssertionError("no command removes single values")

    def usage(self) -> StoreUsage:
        return StoreUsage(num_entries=len(self.stored), num_bytes=sum(entry.num_bytes for entry in self.stored))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("hasten.cli.cache.time", SimpleNamespace(time=lambda: NOW))
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeStore], list[tuple[str, StoreLimits]]]:
    """Return a function that lets the commands open a fake store, and returns the calls that open it."""

    def use(store: FakeStore) -> list[tuple[str, StoreLimits]]:
        calls: list[tuple[str, StoreLimits]] = []

        def open_store(address: str, limits: StoreLimits) -> FakeStore:
            calls.append((address, limits))
            return store

        monkeypatch.setattr("hasten.cli.cache.open_store", open_store)
        return calls

    return use


class Terminal(io.StringIO):
    """Standard input of a person."""

    def isatty(self) -> bool:
        return True


REDIS = ("--cache", "redis://somewhere")


def test_stats(hasten: Any, opened: Any) -> None:
    store = FakeStore(ENTRIES)
    calls = opened(store)
    ran = hasten("cache", "stats", *REDIS, "--json")
    assert json.loads(ran.out) == {
        "entries": 3,
        "bytes": 2_001_600,
        "hits": 5,
        "next_expiry": NOW + 30,
        "last_expiry": NOW + 86_400,
    }
    assert calls[0][0] == "redis://somewhere"
    assert store.is_closed
    lines = [" ".join(line.split()) for line in hasten("cache", "stats", *REDIS).out.splitlines()]
    assert lines == ["RESULT CACHE", "entries 3", "size 2.0 MB", "hits 5", "next expiry in 30 s", "last expiry in 1.0 d"]


def test_ls_lists_the_newest_first(hasten: Any, opened: Any) -> None:
    opened(FakeStore(ENTRIES))
    ran = hasten("cache", "ls", *REDIS)
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert lines == [
        "KEY SIZE HITS EXPIRES IN",
        "1b5b324a0000 100 B 3 1.0 d",
        "202122232425 2,000,000 B - 1.5 h",
        "000102030405 1,500 B 2 30 s",
    ]
    assert (ran.code, ran.err) == (0, "")


def test_ls_stops_at_the_limit_and_says_so(hasten: Any, opened: Any) -> None:
    opened(FakeStore(ENTRIES))
    ran = hasten("cache", "ls", *REDIS, "--limit", "1")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["KEY", "1b5b324a0000"]
    assert ran.err == "2 more; --limit lists them\n"
    assert hasten("cache", "ls", *REDIS, "--limit", "0").code == 2


def test_ls_as_json_has_whole_keys(hasten: Any, opened: Any) -> None:
    opened(FakeStore(ENTRIES))
    listed = json.loads(hasten("cache", "ls", *REDIS, "--json").out)
    assert [bytes.fromhex(entry["key"]) for entry in listed] == [entry.key for entry in reversed(ENTRIES)]
    assert listed[2] == {"key": ENTRIES[0].key.hex(), "bytes": 1500, "hits": 2, "expires": NOW + 30, "expires_in": 30.0}


def test_clear_needs_yes_without_a_terminal(hasten: Any, opened: Any) -> None:
    store = FakeStore(ENTRIES)
    opened(store)
    ran = hasten("cache", "clear", *REDIS)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: without a terminal, clearing a result cache needs --yes. Add --yes.\n"
    assert store.stored == ENTRIES
    ran = hasten("cache", "clear", *REDIS, "--yes")
    assert (ran.code, ran.out, ran.err) == (0, "", "removed 3 results\n")
    assert store.stored == []
    assert store.is_closed


@pytest.mark.parametrize(
    ("answer", "last_line", "code"), [("y\n", "removed 3 results", 0), ("n\n", "nothing was removed", 0), ("", "", 130)]
)
def test_clear_asks_on_a_terminal(
    hasten: Any, opened: Any, monkeypatch: pytest.MonkeyPatch, answer: str, last_line: str, code: int
) -> None:
    monkeypatch.setattr("io.StringIO", Terminal)
    store = FakeStore(ENTRIES)
    opened(store)
    ran = hasten("cache", "clear", *REDIS, stdin=answer)
    assert ran.code == code
    assert ran.err.rstrip("\n") == f"Remove 3 results (2.0 MB)? [y/N]:{last_line}"
    assert (store.stored == []) == (answer == "y\n")


@pytest.mark.parametrize("command", [("stats",), ("ls", "--json"), ("clear", "--yes")])
def test_a_store_that_fails_is_one_sentence(hasten: Any, opened: Any, command: tuple[str, ...]) -> None:
    store = FakeStore(ENTRIES, "the connection\n\x1b[2J was lost")
    opened(store)
    ran = hasten("cache", *command, *REDIS)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: the result cache cannot be used: got the connection \\x1b[2J was lost.\n"
    assert store.is_closed


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("memory:", "belongs to one process"),
        ("floppy:", "no address of a store"),
        ("", "no address of a store"),
        ("sqlite:/proc/no/such/folder", None),
    ],
)
def test_an_address_that_opens_nothing_is_a_mistake(hasten: Any, address: str, expected: str | None) -> None:
    ran = hasten("cache", "ls", "--cache", address, "--json")
    if expected is None:  # a file that does not exist has no entries
        assert (ran.code, ran.out, ran.err) == (0, "[]\n", "there is no file /proc/no/such/folder\n")
    else:
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert expected in ran.err


def test_a_file_that_does_not_exist_is_empty_and_is_not_made(hasten: Any, own_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other\x1b.sqlite"
    for address, file in (((), f"{own_folder}/results.sqlite"), (("--cache", f"sqlite:{other}"), f"{tmp_path}/other\\x1b.sqlite")):
        assert json.loads(hasten("cache", "stats", *address, "--json").out) == {
            "entries": 0,
            "bytes": 0,
            "hits": None,
            "next_expiry": None,
            "last_expiry": None,
        }
        assert hasten("cache", "stats", *address).code == 0
        assert hasten("cache", "ls", *address, "--json").out == "[]\n"
        assert hasten("cache", "clear", *address, "--yes").err == f"there is no file {file}\nremoved 0 results\n"
    assert list(tmp_path.rglob("*")) == [own_folder]


def test_a_file_that_is_no_store_is_one_sentence(hasten: Any, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Sir or Madam, \x1b[2J" * 99)
    for command in (["stats"], ["ls"], ["clear", "--yes"]):
        ran = hasten("cache", *command, "--cache", f"sqlite:{file}")
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert ran.err.startswith("error: ")
    assert file.read_text() == "Dear Sir or Madam, \x1b[2J" * 99


def test_an_sqlite_file(hasten: Any, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real store: values with control characters and letters, of which only keys and sizes are shown."""
    from hasten.caching.open_store import open_store

    monkeypatch.setattr("hasten.cli.cache.time", time)
    limits = StoreLimits(ttl=3600.0, max_bytes=10**9, max_entries=100, eviction="lru", timeout=5.0)
    values = {bytes([number]) * 32: b"\x1b]0;secret\x07" * (number + 1) for number in range(5)}
    store = open_store("sqlite:", limits)
    for key, value in values.items():
        store.put(key, value)
    for _ in range(3):
        store.get(b"\x02" * 32)
    store.close()
    listed = json.loads(hasten("cache", "ls", "--json").out)
    assert {entry["key"]: entry["bytes"] for entry in listed} == {key.hex(): 32 + len(value) for key, value in values.items()}
    assert all(3500 < entry["expires_in"] <= 3600 for entry in listed)
    stats = json.loads(hasten("cache", "stats", "--json").out)
    assert (stats["entries"], stats["bytes"]) == (5, sum(32 + len(value) for value in values.values()))
    shown = hasten("cache", "ls")
    assert "secret" not in shown.out
    assert "\x1b" not in shown.out
    assert hasten("cache", "clear", "--yes").err == "removed 5 results\n"
    assert hasten("cache", "ls", "--json").out == "[]\n"
