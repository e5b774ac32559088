"""Repetition: the share of an output that repeats itself, and where that begins.

Two measures. A loop is a part that follows itself several times, exactly or but for the numbers of a list. Otherwise the share of
n-grams that occurred before counts (seq-rep-n: Welleck et al., "Neural Text Generation with Unlikelihood Training", 2020). Code,
lists and refrains repeat parts of lines, so a loop must be long, and so must the output.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.quality.diagnosis.observed import NOTHING, Measurement, ObservedOutput

MAX_UNITS = 1 << 14  # tokens, or words and signs; of a longer output the end is examined
MAX_PERIOD = 1 << 10  # units of a loop
MAX_QUOTE = 60  # characters
MIN_REPEATS = 4
MIN_LOOP = 16  # units
LONG_LOOP = 48  # units of a loop that is a fault in an output of any length, where the output ends in it
MIN_SHARE = 0.3  # of the output, for shorter loops and those that the output leaves again
MIN_SEGMENTS = 8  # lines or sentences of a loop of them
NGRAM = 4
MIN_NGRAMS = 40
MIN_REPEATED_NGRAMS = 0.6  # tables and tests that people wrote reach 0.5
_UNITS = re.compile(r"[^\W\d_]+|\d+|\s+|([^\w\s]|_)\1*")  # a ruler is one sign
_IDEOGRAPHS = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]")
_SEGMENTS = re.compile(r"[^\n.!?。！？；;]+[\n.!?。！？；;]*")
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d{1,4}[.):、])?\s*")


@dataclass(frozen=True, slots=True)
class _Loop:
    begin: int  # unit at which the first repeat begins
    length: int  # units of all repeats
    period: int


def measure_repetition(output: ObservedOutput) -> Measurement:
    """Return the share of the output that is in a loop, or else of n-grams that occurred before."""
    units: Sequence[Hashable] = output.token_ids
    offsets: list[int] = []
    if not units:
        units, offsets = _split(output.text)
    skipped = max(0, len(units) - MAX_UNITS)
    units = units[skipped:]
    if len(units) < MIN_LOOP:
        return NOTHING
    numbers = _numbered(units)
    loop = _longest_loop(numbers, MIN_REPEATS)
    if loop is not None:
        ends_in_it = loop.begin + loop.length >= len(units) - 2
        share = loop.length / len(units)
        if loop.length >= MIN_LOOP and (share >= MIN_SHARE or (ends_in_it and loop.length >= LONG_LOOP)):
            return _measurement(output, share, skipped + loop.begin, loop.period, offsets)
    return _segment_loop(output) or _repeated_ngrams(output, numbers, skipped, offsets)


def _measurement(output: ObservedOutput, share: float, begin: int, period: int, offsets: list[int]) -> Measurement:
    if not offsets:
        details: dict[str, float | int | str] = {"share": share, "period": period}
        return Measurement(value=share, is_fault=True, kind="loop", offset=begin, unit="token", details=details)
    end = offsets[min(begin + period, len(offsets) - 1)]
    quote = " ".join(output.text[offsets[begin] : end].split())[:MAX_QUOTE]
    quoted: dict[str, float | int | str] = {"share": share, "quote": quote}
    return Measurement(value=share, is_fault=True, kind="loop_text", offset=offsets[begin], details=quoted)


def _segment_loop(output: ObservedOutput) -> Measurement | None:
    """Return the loop of lines or sentences that are equal but for the number before them."""
    found = [piece for piece in _SEGMENTS.finditer(output.text[-MAX_UNITS * 4 :]) if _NUMBERING.sub("", piece[0]).strip()]
    loop = _longest_loop(_numbered([_NUMBERING.sub("", piece[0]).strip() for piece in found]), MIN_REPEATS - 1)
    if loop is None or loop.length < MIN_SEGMENTS:
        return None
    first, last = found[loop.begin], found[loop.begin + loop.length - 1]
    share = (last.end() - first.start()) / max(1, len(output.text))
    if share < MIN_SHARE:
        return None
    quote = " ".join(first[0].split())[:MAX_QUOTE]
    offset = first.start() + max(0, len(output.text) - MAX_UNITS * 4)
    return Measurement(value=share, is_fault=True, kind="loop_text", offset=offset, details={"share": share, "quote": quote})


def _repeated_ngrams(output: ObservedOutput, numbers: NDArray[np.int64], skipped: int, offsets: list[int]) -> Measurement:
    """Return the share of n-grams that occurred before in the output."""
    seen: set[tuple[int, ...]] = set()
    repeated: list[int] = []
    values = numbers.tolist()
    for begin in range(len(values) - NGRAM + 1):
        ngram = tuple(values[begin : begin + NGRAM])
        if ngram in seen:
            repeated.append(begin)
        seen.add(ngram)
    num_ngrams = max(1, len(values) - NGRAM + 1)
    share = len(repeated) / num_ngrams
    is_fault = num_ngrams >= MIN_NGRAMS and share >= MIN_REPEATED_NGRAMS
    if not is_fault:
        return Measurement(value=share, is_fault=False)
    begin = skipped + repeated[0]
    return Measurement(
        value=share,
        is_fault=True,
        kind="ngrams",
        offset=offsets[begin] if offsets else begin,
        unit="character" if offsets else "token",
        details={"share": share, "size": NGRAM},
    )


def _longest_loop(numbers: NDArray[np.int64], min_repeats: int) -> _Loop | None:
    """Return the longest part in which every unit equals the one a period before, over all periods."""
    best: _Loop | None = None
    for period in range(1, min(MAX_PERIOD, len(numbers) // min_repeats) + 1):
        equal = np.concatenate(([0], (numbers[period:] == numbers[:-period]).astype(np.int8), [0]))
        edges = np.flatnonzero(np.diff(equal))
        if not len(edges):
            continue
        runs = edges[1::2] - edges[::2]
        longest = int(runs.argmax())
        length = int(runs[longest]) + period
        # A multiple of the period has the same run, a period shorter: the first one is the true one.
        if length >= min_repeats * period and (best is None or length > best.length):
            best = _Loop(int(edges[2 * longest]), length, period)
    return best


def _numbered(units: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return a number per unit, equal for equal ones."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(unit, len(numbers)) for unit in units], np.int64)


def _split(text: str) -> tuple[list[str], list[int]]:
    """Return the words, signs and ideographs of a text, and where each begins."""
    units: list[str] = []
    offsets: list[int] = []
    for piece in _UNITS.finditer(text, max(0, len(text) - MAX_UNITS * 8)):
        parts = list(piece[0]) if _IDEOGRAPHS.search(piece[0]) else [piece[0]]
        for number, part in enumerate(parts):
            if not part.isspace() or "\n" in part:
                units.append(part)
                offsets.append(piece.start() + number)
    return units, offsets
