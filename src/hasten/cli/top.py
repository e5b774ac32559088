"""``hasten top``: what a running server does, live in the terminal."""

from __future__ import annotations

import json as encoder
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.engine_options import Debug, Json
from hasten.cli.report import print_table
from hasten.cli.top_figures import figures
from hasten.cli.top_scrape import Scrape, fetch, metrics_url
from hasten.cli.top_table import ROWS, cells, model_title, server_line, top_table
from hasten.core.errors import HastenError, InvalidOption

KEY_VARIABLE = "HASTEN_API_KEY"
WINDOW = 10.0  # seconds that live rates and percentiles cover
URL = "http://127.0.0.1:8000"


def top(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's address.")] = URL,
    api_key_file: Annotated[
        str | None, typer.Option("--api-key-file", help=f"A file with an API key; else {KEY_VARIABLE} is used, if it is set.")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the figures once; so without a terminal.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show requests, latency, throughput, caches and processes of a running server; q or Ctrl-C ends it.

    Live figures cover the last ten seconds. Printed ones cover all since the server's start, but rates the interval.
    """
    address, key = metrics_url(url), _api_key(api_key_file)

    def look() -> Scrape:
        return fetch(address, key)

    first = look()
    if once or json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        time.sleep(interval)
        _print(first, look(), json=json)
    else:
        _run_live(first, look, interval)


def _api_key(file: str | None) -> str | None:
    """Return the API key of the file or the variable; None if neither is given.

    Raises ``InvalidOption``, which does not show the key, for one that no request can have.
    """
    key, source = os.environ.get(KEY_VARIABLE) or None, KEY_VARIABLE
    if file is not None:
        source = file
        try:
            with Path(file).open(encoding="utf-8") as stream:
                key = stream.read(4096).strip()
        except (OSError, ValueError) as error:
            reason = type(error).__name__ if isinstance(error, ValueError) else error
            raise InvalidOption(f"the file of the API key {file} cannot be read", got=reason) from None
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise InvalidOption(f"{source} has no API key", allowed="one line of printable ASCII characters without spaces")
    return key


def _print(first: Scrape, second: Scrape, *, json: bool) -> None:
    found = figures(first, second, since_start=True)
    if json:
        print(encoder.dumps(found))
        return
    print(server_line(found["server"]))
    columns = [cells(model) for model in found["models"]]
    rows = [[title, *(column[index] for column in columns)] for index, (title, _) in enumerate(ROWS)]
    print_table(["", *map(model_title, found["models"])], rows if columns else [["no model is loaded"]])


def _run_live(first: Scrape, look: Callable[[], Scrape], interval: float) -> None:
    """Show the figures until q or Ctrl-C; a server that goes away is waited for."""
    from rich.console import Console
    from rich.live import Live

    scrapes, note = deque([first]), "q ends"
    with _single_keys() as read_key, Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(top_table(figures(scrapes[0], scrapes[-1]), note), refresh=True)
            if _quits(read_key, interval):
                return
            try:
                scrapes.append(look())
                note = "q ends"
            except HastenError as error:
                note = str(error)
            while len(scrapes) > 2 and scrapes[-1].time - scrapes[1].time >= WINDOW:
                scrapes.popleft()


def _quits(read_key: Callable[[float], str], seconds: float) -> bool:
    """Wait, and return whether q or the end of the input came within that time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if read_key(left) in ("q", "Q", "\x03", "\x04", "closed"):
            return True
    return False


@contextmanager
def _single_keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits some seconds for a key, and restore the terminal at the end.

    The key is empty if none came, and "closed" if none can come any more.
    """
    try:
        import termios
        import tty
    except ImportError:  # not on Windows: Ctrl-C ends it all the same
        yield _sleep
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def read_key(seconds: float) -> str:
        ready, _, _ = select.select([stdin], [], [], seconds)
        return (os.read(stdin, 1).decode("latin-1") or "closed") if ready else ""

    try:
        tty.setcbreak(stdin)
        yield read_key
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""
