"""What a decoding step costs by the number of its tokens: measured once, then followed.

A step of few tokens waits for memory and one of many for arithmetic, so neither a constant nor a line will do. What changes while
an engine runs is mostly the length of the texts, which makes steps of any size dearer by about the same time. Where one size was
measured wrongly, as something else ran just then, steps near it put that right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

# A step that takes so many times what it should was held up by something else, and says nothing; unless so many in a row do.
FOREIGN, IN_A_ROW = 3.0, 5
FOLLOWED = 0.1  # share of a new measurement in what is believed


class StepCosts:
    def __init__(self, measured: Mapping[int, float]) -> None:
        """``measured``: tokens of a step -> seconds, for two sizes or more."""
        assert len(measured) > 1
        self.measured = measured
        self._sizes = sorted(measured)
        self._believed = [measured[size] for size in self._sizes]
        self._drift, self._num_foreign = 0.0, 0
        self._known: dict[int, float] = {}  # what ``seconds`` has said since the last note
        self._rise()

    def seconds(self, num_tokens: int) -> float:
        known = self._known.get(num_tokens)
        if known is None:
            known = self._known[num_tokens] = max(self._interpolated(num_tokens) + self._drift, 1e-9)
        return known

    def note(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        error = seconds - self.seconds(num_tokens)
        self._known.clear()
        if error >= (FOREIGN - 1) * (seconds - error):
            self._num_foreign += 1
            if self._num_foreign >= IN_A_ROW:  # all steps are like that now, as where texts have become long at once
                self._drift += error
            return
        self._num_foreign = 0
        change = FOLLOWED * error
        self._drift += change
        right, share = self._place(num_tokens)
        self._believed[right - 1] += change * max(1 - share, 0.0)
        # Beyond the last size its point counts ``share`` > 1 times, and is moved by as much less: else the belief would overshoot.
        self._believed[right] += change * min(share, 1 / max(share, 1.0))
        self._rise()

    def best(self, num_lines: int, chances: Sequence[float], spent: float) -> tuple[int, float]:
        """(how many guesses to verify in a step of so many lines, tokens a second then).

        ``chances`` of the guesses to become output, in the order in which they are taken; ``spent``: seconds that guessing took.
        """
        rates = [
            (num_lines + gained) / (self.seconds(num_lines + count) + spent)
            for count, gained in enumerate(accumulate(chances, initial=0.0))
        ]
        count = max(range(len(rates)), key=rates.__getitem__)
        return count, rates[count]

    def counts(self, chances: Sequence[Sequence[float]], spent: float, margin: float = 1.0) -> list[int]:
        """How many guesses of each line to verify, so that the step gives the most tokens a second. Those of a line fall.

        ``margin``: times as many as without a guess it must give, or none is verified.
        """
        order = sorted(((chance, line) for line, mine in enumerate(chances) for chance in mine), key=lambda pair: -pair[0])
        taken, rate = self.best(len(chances), [chance for chance, _ in order], spent)
        if rate < margin * self.best(len(chances), [], spent)[1]:
            taken = 0
        counts = [0] * len(chances)
        for _, line in order[:taken]:
            counts[line] += 1
        return counts

    def _rise(self) -> None:
        """No size is dearer than a larger one: where it seems so, something held up the smaller step."""
        self._seconds = list(accumulate(reversed(self._believed), min))[::-1]

    def _interpolated(self, num_tokens: int) -> float:
        right, share = self._place(num_tokens)
        x, y = self._seconds[right - 1 : right + 1]
        return x + (y - x) * share

    def _place(self, num_tokens: int) -> tuple[int, float]:
        """The size to the right of it, or the last one, and how near it is to that: 0 at the one on the left, above 1 beyond."""
        right = min(max(bisect_right(self._sizes, num_tokens), 1), len(self._sizes) - 1)
        a, b = self._sizes[right - 1 : right + 1]
        return right, max((num_tokens - a) / (b - a), 0.0)
