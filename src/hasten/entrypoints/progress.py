"""Progress bars on stderr, shown on terminals only, and the times of the phases of loading."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class LoadTimer:
    """The seconds of each phase of loading, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin

    def describe(self) -> dict[str, dict[str, float]]:
        """Return the entry of ``LLM.describe``."""
        return {"load_seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()}}

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s ({phases})"


def print_status(text: str, *, visible: bool) -> None:
    """Print one line to stderr if it is a terminal."""
    if visible and sys.stderr.isatty():
        sys.stderr.write(text + "\n")


@contextmanager
def loading_bar(model: str, *, visible: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a callback (bytes loaded, bytes in total), or None if no bar is visible."""
    if not visible:
        yield None
        return
    with _bar(desc=f"loading {model}", unit="B", unit_scale=True) as bar:

        def update(num_loaded: int, total: int) -> None:
            bar.total = total
            bar.update(num_loaded - bar.n)

        yield update


@contextmanager
def transfer_bar(description: str, unit: str, *, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done since the last call, total). The bar appears after two seconds."""
    if not visible:
        yield lambda num_done, total: None
        return
    with _bar(desc=description, unit=unit, unit_scale=True, delay=2) as bar:

        def update(num_done: int, total: int) -> None:
            bar.total = total
            bar.update(num_done)

        yield update


@contextmanager
def scoring_bar(num_tokens: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """Yield a callback (tokens scored since the last call)."""
    if not visible:
        yield lambda num_scored: None
        return
    with _bar(total=num_tokens, desc="comparing", unit=" tokens") as bar:
        yield bar.update


@contextmanager
def choice_bar(num_items: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """Yield a callback (multiple-choice items scored since the last call)."""
    if not visible or not num_items:
        yield lambda num_scored: None
        return
    with _bar(total=num_items, desc="multiple choice", unit=" items") as bar:
        yield bar.update


@contextmanager
def generation_bar(num_requests: int, *, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (requests finished and tokens generated since the last call)."""
    if not visible or num_requests < 2:
        yield lambda num_finished, num_tokens: None
        return
    with _bar(total=num_requests, desc="requests") as bar:
        total_tokens = 0

        def update(num_finished: int, num_tokens: int) -> None:
            nonlocal total_tokens
            total_tokens += num_tokens
            bar.update(num_finished)
            elapsed = bar.format_dict["elapsed"]
            if num_finished and elapsed:
                bar.set_postfix_str(f"{total_tokens / elapsed:.0f} tokens/s")

        yield update


@contextmanager
def step_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (steps done, steps in all)."""
    with _bar(desc=description, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left") as bar:

        def update(num_done: int, total: int) -> None:
            bar.total = total
            bar.update(num_done - bar.n)

        yield update


def print_above_bar(text: str) -> None:
    """Print a line to stderr, above the bar if one is visible."""
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stderr)


def _bar(**settings: Any) -> Any:
    from tqdm.auto import tqdm  # here, because the import is slow

    return tqdm(leave=False, disable=None, **settings)
