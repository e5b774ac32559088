"""``raise_at_call``: one exception at the nth call of hasten's functions, wherever that is."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import hasten

from .oracle import INJECTED

ROOT = str(Path(hasten.__file__).parent)


class Fault(Exception):
    """The planted exception."""


@dataclass
class Calls:
    count: int = 0
    function: str | None = None  # the function that raised; None: there were fewer calls


@contextmanager
def raise_at_call(number: int, functions: Collection[str] = (), kind: type[BaseException] = Fault) -> Iterator[Calls]:
    """Raise ``kind`` at call ``number``, from 1, of a function of hasten; 0 only counts the calls.

    ``functions``: qualified names of the only functions that count.
    """
    calls = Calls()

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT) or (functions and code.co_qualname not in functions):
            return
        if code.co_flags & inspect.CO_GENERATOR:  # an exception while a generator is freed would be lost
            return
        calls.count += 1
        if calls.count == number:
            sys.setprofile(None)
            calls.function = code.co_qualname
            raise kind(INJECTED)

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)
