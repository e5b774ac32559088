"""Ctrl-C while an answer streams: a wish to stop, asked for between tokens, so that the engine is never cut in the middle."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import closing
from types import FrameType, TracebackType
from typing import Any, cast

from hasten.core.output import Delta


def until_interrupted(deltas: Iterator[Delta]) -> Iterator[Delta]:
    """The same deltas up to Ctrl-C, which ends the request: the last delta that came carries no output then."""
    with Interrupt() as interrupt, closing(cast(Generator[Delta, None, None], deltas)):
        for delta in deltas:
            yield delta
            if interrupt.wanted:
                return


class Interrupt:
    """``with Interrupt() as interrupt:`` then look at ``interrupt.wanted``. A second Ctrl-C is a ``KeyboardInterrupt``."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> Interrupt:
        self._previous: Any = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
