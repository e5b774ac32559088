"""``Work``: what one forward step or many process, as numbers that add up. It knows no model.

Symbols: b sequences, s prompt tokens, o output tokens, c tokens before a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import Range

Window = int | None  # of attention; None: full

BatchSize = Annotated[int, Range(1, 2**20)]
Length = Annotated[int, Range(1, 2**24)]


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What the layers with one window process; each of these layers does so once."""

    visible_pairs: int  # of a query and a key that it sees
    full_pairs: int  # of a query and any key of its sequence, as a product without a mask computes
    visible_keys: int  # that a step reads: those that at least one of its queries sees
    full_keys: int  # of the sequences, as a product without a mask reads
    written_keys: int  # into the KV cache

    def __add__(self, other: AttentionWork) -> AttentionWork:
        return AttentionWork(
            self.visible_pairs + other.visible_pairs,
            self.full_pairs + other.full_pairs,
            self.visible_keys + other.visible_keys,
            self.full_keys + other.full_keys,
            self.written_keys + other.written_keys,
        )


@dataclass(frozen=True, slots=True)
class Symbols:
    """How formulas write the numbers of a ``Work``."""

    tokens: str = "T"
    rows: str = "R"
    pairs: str = "P"  # with full attention


@dataclass(frozen=True, slots=True)
class Work:
    """``head_steps`` of the steps compute logits, of ``logit_rows`` tokens in all."""

    steps: int
    head_steps: int
    tokens: int
    logit_rows: int
    attention: tuple[tuple[Window, AttentionWork], ...]  # per window
    symbols: Symbols = Symbols()

    def __add__(self, other: Work) -> Work:
        ours, theirs = dict(self.attention), dict(other.attention)
        assert ours.keys() == theirs.keys(), "both are of one model"
        return Work(
            self.steps + other.steps,
            self.head_steps + other.head_steps,
            self.tokens + other.tokens,
            self.logit_rows + other.logit_rows,
            tuple((window, work + theirs[window]) for window, work in ours.items()),
        )

    def attention_of(self, window: Window) -> AttentionWork:
        return next(work for own, work in self.attention if own == window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Equal requests that run together. Raises ``InvalidOption`` naming every number that is out of range."""

    batch: BatchSize = 1
    prompt: Length = 512  # tokens
    output: Length = 128  # tokens

    def __post_init__(self) -> None:
        check_fields(self, "number", InvalidOption)


def step(
    sequences: Sequence[tuple[int, int]], windows: Iterable[Window] = (None,), *, logit_rows: int | None = None, cache: bool = True
) -> Work:
    """Return the work of one step. ``sequences``: per sequence, its new tokens and the tokens before them.

    ``logit_rows`` None: one per sequence. Without a ``cache`` no keys are kept.
    """
    rows = len(sequences) if logit_rows is None else logit_rows
    return Work(
        steps=1,
        head_steps=int(rows > 0),
        tokens=sum(new for new, _ in sequences),
        logit_rows=rows,
        attention=tuple((window, _attention(sequences, window, cache)) for window in dict.fromkeys(windows)),
    )


def prefill(batch: int, prompt: int, windows: Iterable[Window] = (None,)) -> Work:
    """Return the work of the step that computes ``batch`` prompts and the first token of each output."""
    work = step([(prompt, 0)], windows)
    return _times(work, batch, Symbols("b·s", "b", "b·s·(s + 1)/2"))


def decode(batch: int, context: int, windows: Iterable[Window] = (None,), *, tokens: int = 1) -> Work:
    """Return the work of a step that computes ``tokens`` tokens per sequence after ``context`` others.

    More than one token: a draft is verified, with a row of logits for each token.
    """
    work = step([(tokens, context)], windows, logit_rows=tokens)
    symbols = Symbols("b", "b", "b·(c + 1)") if tokens == 1 else Symbols("b·t", "b·t", "b·(t·c + t·(t + 1)/2)")
    return _times(work, batch, symbols)


def request(lengths: Lengths, windows: Iterable[Window] = (None,), *, cache: bool = True) -> Work:
    """Return the work of ``lengths.batch`` requests, from the prompt to the last output token.

    The last output token is never computed itself. Without a KV cache, each output token computes all tokens before it again.
    """
    return _with_cache(lengths, windows) if cache else _without_cache(lengths, windows)


def visible_pairs(new: int, before: int, window: Window) -> int:
    """Return how many pairs of a query and a visible key ``new`` tokens after ``before`` others have."""
    return _pairs_until(before + new, window) - _pairs_until(before, window)


def _attention(sequences: Sequence[tuple[int, int]], window: Window, cache: bool) -> AttentionWork:
    return AttentionWork(
        visible_pairs=sum(visible_pairs(new, before, window) for new, before in sequences),
        full_pairs=sum(new * (before + new) for new, before in sequences),
        visible_keys=sum(new + (before if window is None else min(before, window - 1)) for new, before in sequences),
        full_keys=sum(before + new for new, before in sequences),
        written_keys=sum(new for new, _ in sequences) if cache else 0,
    )


def _with_cache(lengths: Lengths, windows: Iterable[Window]) -> Work:
    prompt, steps = lengths.prompt, lengths.output - 1
    end = prompt + steps  # tokens that are computed
    decoding = []
    for window in dict.fromkeys(windows):
        pairs, keys = visible_pairs(steps, prompt, window), _triangle(end) - _triangle(prompt)
        decoding.append((window, AttentionWork(pairs, keys, pairs, keys, steps)))  # a step's one query reads the keys that it sees
    decoded = Work(steps, steps, steps, steps, tuple(decoding))
    work = step([(prompt, 0)], windows) + decoded
    # All sequences share each step.
    return _times(work, lengths.batch, Symbols("b·(s + o - 1)", "b·o", "b·(s + o - 1)·(s + o)/2"))


def _without_cache(lengths: Lengths, windows: Iterable[Window]) -> Work:
    first, last = lengths.prompt, lengths.prompt + lengths.output - 1  # tokens of the first step and of the last
    tokens = _triangle(last) - _triangle(first - 1)
    squares = _squares(last) - _squares(first - 1)
    attention = tuple(
        (window, AttentionWork(_repeated_pairs(last, window) - _repeated_pairs(first - 1, window), squares, tokens, tokens, 0))
        for window in dict.fromkeys(windows)
    )
    work = Work(lengths.output, lengths.output, tokens, lengths.output, attention)
    return _times(work, lengths.batch, Symbols("b·(o·s + o·(o - 1)/2)", "b·o", "P"))


def _times(work: Work, batch: int, symbols: Symbols) -> Work:
    """Return the work of ``batch`` equal sequences, which share each step."""
    attention = tuple(
        (
            window,
            AttentionWork(
                batch * one.visible_pairs,
                batch * one.full_pairs,
                batch * one.visible_keys,
                batch * one.full_keys,
                batch * one.written_keys,
            ),
        )
        for window, one in work.attention
    )
    return Work(work.steps, work.head_steps, batch * work.tokens, batch * work.logit_rows, attention, symbols)


def _triangle(n: int) -> int:
    """Return 1 + 2 + ... + n."""
    return n * (n + 1) // 2


def _squares(n: int) -> int:
    """Return 1 + 4 + ... + n²."""
    return n * (n + 1) * (2 * n + 1) // 6


def _pairs_until(n: int, window: Window) -> int:
    """Return the visible pairs of the first ``n`` tokens of a sequence."""
    full = n if window is None else min(n, window)  # tokens that see all before them
    return _triangle(full) + (n - full) * (window or 0)


def _repeated_pairs(n: int, window: Window) -> int:
    """Return the sum of ``_pairs_until`` from 1 to ``n``."""
    full = n if window is None else min(n, window)
    late = n - full
    return full * (full + 1) * (full + 2) // 6 + late * _triangle(full) + (window or 0) * _triangle(late)
