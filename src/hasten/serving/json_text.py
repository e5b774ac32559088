"""``parse_json``: the value of a JSON text of a stranger, in bounded time.

It refuses what parsers read differently (a name that stands twice in an object, NaN, other encodings than UTF-8), and what would
fail later: halves of surrogate pairs, and numbers of any length.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any, NamedTuple

from hasten.core.errors import show
from hasten.serving.api_error import invalid

# The parser does not let other threads run between these, so their number bounds how long the event loop waits.
MAX_CONTAINERS = 1 << 16  # arrays and objects
MAX_STRINGS = 1 << 17  # names included
MAX_DIGITS = 40  # of an integer
MAX_NUMBER = 400  # characters of another number

_PART = 1 << 18  # bytes that are looked at together
_PAIR = 12  # bytes of the two escapes of a surrogate pair
_STRUCTURE = b'"[]{}'
_OTHERS = bytes(set(range(256)) - set(_STRUCTURE))
_STEPS = bytes(1 if byte in b"[{" else 255 for byte in range(256))  # 255: -1 as a signed byte
# A high surrogate without a low one after it, or a low one without a high one before.
_LONE = re.compile(rb"\\u[dD](?:[89abAB](?!..\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])", re.DOTALL)


class Nesting(NamedTuple):
    depth: int
    num_containers: int
    num_strings: int


def parse_json(text: bytes, max_depth: int) -> Any:
    """Return the value of a JSON text.

    Raises ``ApiError`` for other texts, deep nesting, more than ``MAX_CONTAINERS`` arrays and objects or ``MAX_STRINGS`` strings.
    """
    found = nesting(text)
    if found.depth > max_depth:
        raise invalid(f"the JSON is nested {found.depth} levels deep; allowed: up to {max_depth}")
    if found.num_containers > MAX_CONTAINERS:
        raise invalid(f"the JSON has {found.num_containers} arrays and objects; allowed: up to {MAX_CONTAINERS}")
    if found.num_strings > MAX_STRINGS:
        raise invalid(f"the JSON has {found.num_strings} strings; allowed: up to {MAX_STRINGS}")
    if _has_lone_surrogate(text):
        raise invalid("the JSON has half of a surrogate pair, which is no text")
    try:
        return json.loads(
            text.decode(), parse_constant=_refuse, parse_float=_finite_float, parse_int=_bounded_int, object_pairs_hook=_object
        )
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from None


def nesting(text: bytes) -> Nesting:
    """Return how deep a JSON text is nested, and what it holds.

    For other texts this is right up to the first fault.
    """
    depth = deepest = num_containers = num_quotes = start = 0
    in_string = False
    while start < len(text):
        stop = _end_of_part(text, start)
        part = text[start:stop].replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
        num_quotes += part.count(b'"')
        pieces = (b'"' + part if in_string else part).split(b'"')  # strings are at odd places
        in_string = len(pieces) % 2 == 0
        brackets = b"".join(pieces[::2])
        if brackets:
            num_containers += brackets.count(b"[") + brackets.count(b"{")
            levels = list(itertools.accumulate(memoryview(brackets.translate(_STEPS)).cast("b"), initial=depth))
            depth, deepest = levels[-1], max(deepest, max(levels))
        start = stop
    return Nesting(deepest, num_containers, (num_quotes + 1) // 2)


def _end_of_part(text: bytes, start: int) -> int:
    """Return where a part ends that does not cut an escape sequence."""
    part = text[start : start + _PART]
    num_backslashes = len(part) - len(part.rstrip(b"\\"))
    return min(len(text), start + _PART + num_backslashes % 2)


def _has_lone_surrogate(text: bytes) -> bool:
    if b"\\ud" not in text and b"\\uD" not in text:
        return False
    filled = text.replace(b"\\\\", b"__")
    for start in range(0, len(filled), _PART):
        stop = start + _PART
        found = _LONE.search(filled, start, stop + _PAIR)  # what begins in this part may end in the next
        if found is not None and found.start() < stop:
            return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, following in itertools.pairwise(names) if name == following)
        raise ValueError(f"the name {show(twice)} stands twice in an object")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite_float(text: str) -> float:
    value = float(text) if len(text) <= MAX_NUMBER else math.inf
    if not math.isfinite(value):
        raise ValueError("a number is too large or too long")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(text)
