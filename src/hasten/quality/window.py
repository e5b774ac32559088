"""Cutting texts into independent windows: every token but a text's first is predicted once.

::

    text      t0 t1 t2 t3 t4 t5 t6 t7 t8        length = 4
    window 0  t0 t1 t2 t3
      predicts   t1 t2 t3 t4
    window 1              t4 t5 t6 t7
      predicts               t5 t6 t7 t8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.core.errors import InvalidOption

WINDOW = 512  # default tokens per window
NUM_TOKENS = 16_384  # default predicted tokens: they tell settings apart, and take minutes for 1e9 parameters

# Multiples of the golden ratio modulo 1 fill [0, 1) evenly, so any first few windows are spread over all texts.
_GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class TokenText:
    """One text as token ids.

    ``ends[i]`` is the number of bytes that tokens ``[0, i]`` cover; None without a text.
    """

    token_ids: tuple[int, ...]
    ends: tuple[int, ...] | None = None

    def window(self, start: int, stop: int) -> Window:
        """Return the window that predicts the tokens ``(start, stop]``."""
        size = None if self.ends is None else self.ends[stop] - self.ends[start]
        return Window(self.token_ids[start : stop + 1], size)


@dataclass(frozen=True, slots=True)
class Window:
    """The input tokens ``token_ids[:-1]`` and the predicted tokens ``token_ids[1:]``."""

    token_ids: tuple[int, ...]
    num_bytes: int | None  # of the predicted text

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) - 1


def windows(texts: Sequence[TokenText], length: int, num_tokens: int | None = None) -> list[Window]:
    """Return windows of ``length`` tokens with at most ``num_tokens`` predicted tokens in total.

    The last window of a text may be shorter. The windows that are left out are spread evenly over the texts. Raises
    ``InvalidOption`` if no token can be predicted.
    """
    for name, value in (("the window", length), ("the number of tokens", num_tokens)):
        if value is not None and value < 1:
            raise InvalidOption(f"{name} is out of range", got=value, allowed="from 1 token")
    spans = [
        (text, start, min(start + length, len(text.token_ids) - 1))
        for text in texts
        for start in range(0, len(text.token_ids) - 1, length)
    ]
    if not spans:
        raise InvalidOption(
            "the text is too short to predict anything",
            got=f"{max((len(text.token_ids) for text in texts), default=0)} tokens",
            allowed="at least 2 tokens",
            remedy="Give a longer text: reliable figures need some thousands of tokens",
        )
    total = sum(stop - start for _, start, stop in spans)
    if num_tokens is None or num_tokens >= total:
        return [text.window(start, stop) for text, start, stop in spans]
    chosen: dict[int, Window] = {}
    for number in spread(len(spans)):
        text, start, stop = spans[number]
        stop = min(stop, start + num_tokens)
        chosen[number] = text.window(start, stop)
        num_tokens -= stop - start
        if num_tokens == 0:
            break
    return [chosen[number] for number in sorted(chosen)]


def spread(count: int, turn: int = 0) -> list[int]:
    """Return the numbers below ``count`` in an order whose first few are spread evenly.

    The first numbers of different turns are spread evenly, too.
    """
    first = int(turn * _GOLDEN_RATIO % 1 * count)
    return sorted(range(count), key=lambda i: (i - first) % count * _GOLDEN_RATIO % 1)
