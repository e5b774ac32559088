"""Measured costs: seconds of a step by its tokens, and of a drafter by its batch size."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

STEP_UPDATE = 0.1  # weight of a new measurement of a step
DRAFT_UPDATE = 0.2  # and of a drafter
# A step that takes so many times its expected time was held up by other work and is ignored, unless so many in a row are.
OUTLIER, MAX_OUTLIERS = 3.0, 5


class CostModel:
    """Seconds of a decoding step by its number of tokens: measured at start-up, then tracked.

    Small steps are memory-bound and large ones compute-bound: the model is piecewise linear and never falls. ``_offset`` follows
    longer contexts, which slow steps of all sizes alike. ``measured``: number of tokens -> seconds, for two sizes or more.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        assert len(measured) > 1
        self.measured = measured
        self._sizes = sorted(measured)
        self._points = [measured[size] for size in self._sizes]
        self._offset, self._num_outliers = 0.0, 0
        self._clear_cache()

    def seconds(self, num_tokens: int) -> float:
        if num_tokens not in self._cache:
            right, share = self._locate(num_tokens)
            a, b = self._curve[right - 1 : right + 1]
            self._cache[num_tokens] = max(a + (b - a) * share + self._offset, 1e-9)
        return self._cache[num_tokens]

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step: half of the error moves all sizes, half the sizes near this one."""
        expected = self.seconds(num_tokens)
        error = seconds - expected
        self._num_outliers = self._num_outliers + 1 if seconds >= OUTLIER * expected else 0
        if self._num_outliers:
            self._offset += error if self._num_outliers >= MAX_OUTLIERS else 0.0
        else:
            self._offset += STEP_UPDATE * error
            right, share = self._locate(num_tokens)
            self._points[right - 1] += STEP_UPDATE * error * max(1 - share, 0.0)
            # Beyond the last size its point counts ``share`` > 1 times and moves by as much less, or the estimate would overshoot.
            self._points[right] += STEP_UPDATE * error * min(share, 1 / max(share, 1.0))
        self._clear_cache()

    def best_count(self, probabilities: Sequence[Sequence[float]], draft_seconds: float) -> tuple[int, float]:
        """Return how many draft tokens to verify, best first over all sequences, and the token rate."""
        num_sequences, merged = len(probabilities), sorted((p for own in probabilities for p in own), reverse=True)
        rates = [
            (num_sequences + expected) / (self.seconds(num_sequences + count) + draft_seconds)
            for count, expected in enumerate(accumulate(merged, initial=0.0))
        ]
        count = max(range(len(rates)), key=rates.__getitem__)
        return count, rates[count]

    def allocate(self, probabilities: Sequence[Sequence[float]], draft_seconds: float, margin: float = 1.0) -> list[int]:
        """Return how many draft tokens of each sequence to verify; none where the gain is below ``margin``."""
        order = sorted(((p, i) for i, own in enumerate(probabilities) for p in own), key=lambda pair: -pair[0])
        count, rate = self.best_count(probabilities, draft_seconds)
        counts = [0] * len(probabilities)
        if rate >= margin * len(probabilities) / (self.seconds(len(probabilities)) + draft_seconds):
            for _, i in order[:count]:
                counts[i] += 1
        return counts

    def _clear_cache(self) -> None:
        self._cache: dict[int, float] = {}
        self._curve = list(accumulate(reversed(self._points), min))[::-1]  # a smaller step that seems slower was held up

    def _locate(self, num_tokens: int) -> tuple[int, float]:
        """Return the next larger measured size, and the position between its predecessor and it (0 to 1)."""
        right = min(max(bisect_right(self._sizes, num_tokens), 1), len(self._sizes) - 1)
        a, b = self._sizes[right - 1 : right + 1]
        return right, max((num_tokens - a) / (b - a), 0.0)


@dataclass(slots=True)
class DraftCostModel:
    """Seconds of one drafter. Batch sizes between the same powers of two count as equal."""

    _seconds: dict[int, float] = field(default_factory=dict)  # of one call
    _prefill: float = 0.0  # seconds per token
    _reached: dict[int, list[float]] = field(default_factory=dict)  # [i]: share of rounds that made call i

    def seconds(self, batch_size: int) -> float | None:
        """Return the seconds of one call, from the largest known batch up to this size; None if there is none."""
        known = [bits for bits in self._seconds if bits <= batch_size.bit_length()]
        return self._seconds[max(known)] if known else None

    def round_seconds(self, batch_size: int, max_calls: int, extra_calls: int = 0) -> float | None:
        """Return the expected seconds of a round, with ``extra_calls`` that every round makes."""
        seconds, reached = self.seconds(batch_size), self._reached.get(batch_size.bit_length()) or [1.0]
        expected = extra_calls + sum(reached[:max_calls]) + reached[-1] * max(0, max_calls - len(reached))
        return None if seconds is None else seconds * expected

    def prefill_seconds(self, num_tokens: int) -> float:
        return self._prefill * num_tokens

    def record(self, batch_size: int, seconds: float) -> None:
        bits = batch_size.bit_length()
        known = self._seconds.get(bits, seconds)
        self._seconds[bits] = known + DRAFT_UPDATE * (seconds - known)

    def record_round(self, batch_size: int, max_calls: int, num_calls: int) -> None:
        reached = self._reached.setdefault(batch_size.bit_length(), [])
        reached += (reached[-1:] or [1.0]) * (max_calls - len(reached))
        for i in range(max_calls):
            reached[i] += DRAFT_UPDATE * ((i < num_calls) - reached[i])

    def record_prefill(self, num_tokens: int, seconds: float) -> None:
        self._prefill += (DRAFT_UPDATE if self._prefill else 1.0) * (seconds / num_tokens - self._prefill)
