"""Progress bars on stderr, only where someone looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def loading_bar(model: str, *, visible: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yields a callback (bytes done, bytes in all) that moves a bar, or None if it is not to be seen."""
    if not visible:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=f"loading {model}", unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def tell(text: str, *, visible: bool) -> None:
    """One line, where a bar would be seen."""
    if visible and sys.stderr.isatty():
        sys.stderr.write(text + "\n")


@contextmanager
def scoring_bar(num_tokens: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """Yields a callback (tokens scored now)."""
    if not visible:
        yield lambda tokens: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=num_tokens, desc="comparing", unit=" tokens", leave=False, disable=None) as bar:

        def advance(tokens: int) -> None:
            bar.update(tokens)

        yield advance


@contextmanager
def generation_bar(num_requests: int, *, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (requests finished now, tokens made now)."""
    if not visible or num_requests < 2:
        yield lambda finished, tokens: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=num_requests, desc="requests", leave=False, disable=None) as bar:
        made = 0

        def advance(finished: int, tokens: int) -> None:
            nonlocal made
            made += tokens
            bar.update(finished)
            elapsed = bar.format_dict["elapsed"]
            if finished and elapsed:
                bar.set_postfix_str(f"{made / elapsed:.0f} tokens/s")

        yield advance
