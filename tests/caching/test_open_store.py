"""An address opens its store; every other text is refused in one sentence without its password."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.caching.naive_store import limits

from hasten.caching.memory_store import MemoryStore
from hasten.caching.open_store import open_store
from hasten.caching.sqlite_store import SqliteStore
from hasten.core.errors import InvalidOption


def test_memory() -> None:
    store = open_store("memory:", limits())
    assert isinstance(store, MemoryStore) and not store.does_io
    store.put(bytes(32), b"value")
    assert store.get(bytes(32)) == b"value"


@pytest.mark.parametrize(
    "address, file", [("sqlite:", "cache/results.sqlite"), ("sqlite:sub/x y?#%41.db", "sub/x y?#%41.db"), ("sqlite:~/b", "home/b")]
)
def test_sqlite(address: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = open_store(address, limits())
    assert isinstance(store, SqliteStore) and store.does_io
    store.put(bytes(32), b"value")
    store.close()
    assert (tmp_path / file).stat().st_size > 0
    store = open_store(f"sqlite:{tmp_path / file}", limits())
    assert store.get(bytes(32)) == b"value"
    store.close()


@pytest.mark.parametrize(
    "address, got",
    [
        ("", "''"),
        ("memory", "'memory'"),
        ("memory:x", "'memory:x'"),
        ("sqlite::memory:", "'sqlite::memory:'"),
        ("Redis://h", "'Redis:...'"),
        ("redis:h", "'redis:...'"),
        ("http://user:secret@host", "'http:...'"),
        ("redis//:secret@host", "'redis//:...'"),
        ("secret@host", "'...'"),
        ("memory://user:secret@host", "'memory:...'"),
        (":secret@host", "':...'"),
    ],
)
def test_other_addresses_are_refused(address: str, got: str) -> None:
    with pytest.raises(InvalidOption) as error:
        open_store(address, limits())
    assert error.value.got == got
    assert "memory:, sqlite:, sqlite:PATH, redis://" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_path_without_a_scheme_is_explained() -> None:
    with pytest.raises(InvalidOption, match=r"For a file, write 'sqlite:my/results\.db'"):
        open_store("my/results.db", limits())
