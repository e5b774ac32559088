"""``hasten cache``: show, list and clear the stored results of a result cache."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json as encoder
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.caching.base import ResultStore, StoredEntry, StoreFailed, StoreLimits
from hasten.caching.open_store import open_store, sqlite_path
from hasten.cli.engine_options import Debug, Json
from hasten.cli.report import megabytes, print_table
from hasten.core.engine_options import EngineOptions
from hasten.core.errors import HastenError, InvalidOption, printable

TIMEOUT = 10.0  # seconds; a person waits longer than a request
MAX_LISTED = 10**6

cache = typer.Typer(help="Show or clear a result cache.", no_args_is_help=True, rich_markup_mode=None)

Address = Annotated[
    str,
    typer.Option(
        "--cache",
        metavar="ADDRESS",
        help="As --result-cache: sqlite: (the file in hasten's cache folder), sqlite:PATH or redis://...",
    ),
]


@cache.command()
def stats(address: Address = "sqlite:", json: Json = False, debug: Debug = False) -> None:
    """Show how many results are stored, their size, their hits and when they expire."""
    with _opened(address) as store:
        report = _summarize(_entries(store))
    if json:
        print(encoder.dumps(report))
        return
    now = time.time()
    rows = [("entries", f"{report['entries']:,}"), ("size", megabytes(report["bytes"])), ("hits", _number(report["hits"]))]
    for name in ("next_expiry", "last_expiry"):
        expires = report[name]
        rows.append((name.replace("_", " "), "-" if expires is None else f"in {_duration(expires - now)}"))
    print_table(("RESULT CACHE", ""), rows)


@cache.command()
def ls(
    address: Address = "sqlite:",
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LISTED, help="Maximum results that are listed.")] = 100,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List stored results by key, those that were stored last first."""
    with _opened(address) as store:
        num_entries, listed = _newest(_entries(store), limit)
    now = time.time()
    if json:
        print(encoder.dumps([_as_json(entry, now) for entry in listed]))
        return
    rows = [
        (entry.key.hex()[:12], f"{entry.num_bytes:,} B", _number(entry.hits), _duration(entry.expires - now)) for entry in listed
    ]
    print_table(("KEY", "SIZE", "HITS", "EXPIRES IN"), rows)
    if num_entries > len(rows):
        print(f"{num_entries - len(rows):,} more; --limit lists them", file=sys.stderr)


@cache.command()
def clear(
    address: Address = "sqlite:",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    """Remove all stored results. On a terminal it asks first."""
    if not yes and not sys.stdin.isatty():
        raise InvalidOption("without a terminal, clearing a result cache needs --yes", remedy="Add --yes")
    with _opened(address) as store:
        if not yes:
            report = _summarize(_entries(store))
            if not typer.confirm(f"Remove {report['entries']:,} results ({megabytes(report['bytes'])})?", err=True):
                print("nothing was removed", file=sys.stderr)
                return
        num_removed = 0 if store is None else store.clear()
    print(f"removed {num_removed:,} results", file=sys.stderr)


@contextlib.contextmanager
def _opened(address: str) -> Iterator[ResultStore | None]:
    """Open a store, and close it at the end; None for a file that does not exist, which is not made.

    Raises ``HastenError`` for a store that cannot be opened, and instead of every ``StoreFailed``.
    """
    if address == "memory:":
        raise InvalidOption("the result cache memory: belongs to one process", got=address, remedy="Use its LLM.stats()")
    path = sqlite_path(address)
    if path is not None and not _exists(path):
        print(f"there is no file {printable(path)}", file=sys.stderr)
        yield None
        return
    with closing(open_store(address, _limits())) as store:
        try:
            yield store
        except StoreFailed as error:
            raise HastenError("the result cache cannot be used", got=error) from None


def _exists(path: Path) -> bool:
    try:
        return path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # the store says what is wrong
        return True


def _limits() -> StoreLimits:
    """Return limits at which nothing is evicted."""
    options = EngineOptions()
    return StoreLimits(
        ttl=options.result_cache_ttl,
        max_bytes=2**62,
        max_entries=2**62,
        eviction=options.result_cache_eviction,
        timeout=TIMEOUT,
    )


def _entries(store: ResultStore | None) -> Iterator[StoredEntry]:
    return iter(()) if store is None else store.entries()


def _summarize(entries: Iterator[StoredEntry]) -> dict[str, Any]:
    """Return the totals of some entries; ``hits`` is None if the store counts none."""
    num_entries = num_bytes = num_hits = 0
    counts_hits, first, last = False, None, None
    for entry in entries:
        num_entries, num_bytes = num_entries + 1, num_bytes + entry.num_bytes
        if entry.hits is not None:
            counts_hits, num_hits = True, num_hits + entry.hits
        first = entry.expires if first is None else min(first, entry.expires)
        last = entry.expires if last is None else max(last, entry.expires)
    hits = num_hits if counts_hits else None
    return {"entries": num_entries, "bytes": num_bytes, "hits": hits, "next_expiry": first, "last_expiry": last}


def _newest(entries: Iterator[StoredEntry], limit: int) -> tuple[int, list[StoredEntry]]:
    """Return how many entries there are, and those that expire last."""
    numbered = zip(entries, count := itertools.count(), strict=False)
    newest = heapq.nlargest(limit, numbered, key=lambda pair: pair[0].expires)
    return next(count), [entry for entry, _ in newest]


def _as_json(entry: StoredEntry, now: float) -> dict[str, Any]:
    return {
        "key": entry.key.hex(),
        "bytes": entry.num_bytes,
        "hits": entry.hits,
        "expires": entry.expires,
        "expires_in": max(0.0, entry.expires - now),
    }


def _number(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _duration(seconds: float) -> str:
    """Return a time span in its largest unit, such as ``3.5 h``."""
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{max(0, round(seconds))} s"
