"""``open_store``: the store of a result cache from its address."""

from __future__ import annotations

from pathlib import Path

from hasten.caching.base import ResultStore, StoreLimits
from hasten.caching.memory_store import MemoryStore
from hasten.core.cache_folder import cache_folder
from hasten.core.errors import InvalidOption, show

ALLOWED = "memory:, sqlite:, sqlite:PATH, redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix://PATH"
_REDIS_SCHEMES = ("redis", "rediss", "unix")


def open_store(address: str, limits: StoreLimits) -> ResultStore:
    """Open the store at an address: in memory, in an SQLite file or in Redis.

    ``sqlite:`` alone means ``results.sqlite`` in hasten's cache folder. Raises ``InvalidOption`` for an address that names no
    store, and ``HastenError`` for a store that cannot be opened. No message shows the password of a URL.
    """
    scheme, colon, rest = address.partition(":")
    if address == "memory:":
        return MemoryStore(limits)
    if (path := sqlite_path(address)) is not None:
        from hasten.caching.sqlite_store import SqliteStore

        return SqliteStore(path, limits)
    if scheme in _REDIS_SCHEMES and rest.startswith("//"):
        from hasten.caching.redis_store import RedisStore

        return RedisStore(address, limits)
    # An address with a colon or an @ could hold a password; without either it may be a path whose scheme was forgotten.
    is_path = bool(address) and ":" not in address and "@" not in address
    is_public = "@" not in address and (is_path or address == "" or scheme in ("memory", "sqlite"))
    raise InvalidOption(
        "result_cache is no address of a store",
        got=show(address) if is_public else show(f"{scheme}:..." if colon else "..."),
        allowed=ALLOWED,
        remedy=f"For a file, write {show(f'sqlite:{address}')}" if is_path else None,
    )


def sqlite_path(address: str) -> Path | None:
    """Return the file of an address, which may not exist; None for another store. Raises ``HastenError``."""
    scheme, colon, rest = address.partition(":")
    if not colon or scheme != "sqlite" or rest == ":memory:":
        return None
    return Path(rest) if rest else cache_folder() / "results.sqlite"
