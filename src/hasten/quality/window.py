"""Cutting texts into windows that are read on their own: each token but a text's first is predicted exactly once.

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

WINDOW = 512  # tokens read without a break
NUM_TOKENS = 16_384  # predicted in all: enough to tell settings apart, minutes with a model of 1e9 parameters

# Multiples of it, modulo 1, fill the unit interval evenly: the first few windows in their order are spread over all texts.
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class TokenText:
    """One text as token ids. ``ends[i]``: how many bytes of the text tokens ``[0, i]`` cover; None where there is no text."""

    token_ids: tuple[int, ...]
    ends: tuple[int, ...] | None = None

    def window(self, start: int, stop: int) -> Window:
        """The tokens ``[start, stop)``, and the one that follows."""
        size = None if self.ends is None else self.ends[stop] - self.ends[start]
        return Window(self.token_ids[start : stop + 1], size)


@dataclass(frozen=True, slots=True)
class Window:
    """``token_ids[:-1]`` is read, ``token_ids[1:]`` is predicted."""

    token_ids: tuple[int, ...]
    num_bytes: int | None  # of the text that is predicted

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) - 1


def windows(texts: Sequence[TokenText], length: int, num_tokens: int | None = None) -> list[Window]:
    """Windows of ``length`` tokens, shorter at the end of a text; at most ``num_tokens`` predicted tokens in all if given.

    What is left out is left out evenly, so that a part stands for the whole. Raises ``InvalidOption`` if nothing can be predicted.
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
            remedy="Give a longer text; some thousands of tokens make a figure that holds",
        )
    total = sum(stop - start for _, start, stop in spans)
    if num_tokens is None or num_tokens >= total:
        return [text.window(start, stop) for text, start, stop in spans]
    chosen: dict[int, Window] = {}
    for number in sorted(range(len(spans)), key=lambda i: i * _GOLDEN % 1):
        text, start, stop = spans[number]
        stop = min(stop, start + num_tokens)
        chosen[number] = text.window(start, stop)
        num_tokens -= stop - start
        if num_tokens == 0:
            break
    return [chosen[number] for number in sorted(chosen)]
