"""Ctrl-C as a request to stop that is checked between tokens, so that no engine step is cut short."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

INTERRUPTED = 130  # exit code

AnyDelta = TypeVar("AnyDelta")  # of a request, or of an answer in sections


def until_interrupted(deltas: Iterator[AnyDelta]) -> Iterator[AnyDelta]:
    """Yield ``deltas`` until Ctrl-C, which ends the request: then no delta carries an output."""
    with Interrupt() as interrupt, closing(cast(Generator[AnyDelta, None, None], deltas)):
        for delta in deltas:
            yield delta
            if interrupt.requested:
                return


class Interrupt:
    """A context that sets ``requested`` at the first Ctrl-C.

    The second Ctrl-C raises ``KeyboardInterrupt``.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._previous: Any = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
