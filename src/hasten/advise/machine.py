"""``MachineLimits``: how fast a machine streams memory and multiplies, and how rates are written."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from hasten.core.errors import InvalidOption, show

_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
MIN_RATE, MAX_RATE = 1e6, 1e18
FALLBACKS = {  # arithmetic of a form -> that whose rate stands for it where it has none
    "int4": "int8",
    "int8-weight-only": "bfloat16",
    "int4-weight-only": "bfloat16",
    "float16": "bfloat16",
    "fp8": "bfloat16",
    "int8": "bfloat16",
    "bfloat16": "float32",
}


@dataclass(frozen=True, slots=True)
class KernelRate:
    """FLOPs per second of matrix products, by their rows. ``points`` ascend; a published peak has one."""

    points: tuple[tuple[int, float], ...]

    @property
    def peak(self) -> float:
        return max(rate for _, rate in self.points)

    def at(self, rows: float) -> float:
        """Return the rate at ``rows``, between the measured points in proportion to their logarithms."""
        sizes = [size for size, _ in self.points]
        right = bisect_left(sizes, rows)
        if right in (0, len(sizes)):
            return self.points[min(right, len(sizes) - 1)][1]
        (a, low), (b, high) = self.points[right - 1 : right + 1]
        share = math.log(rows / a) / math.log(b / a)
        return math.exp(math.log(low) * (1 - share) + math.log(high) * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLimits:
    """Rates per second, times in seconds."""

    name: str
    bandwidth: float  # bytes
    rates: Mapping[str, KernelRate]  # by arithmetic: a dtype, or a quantization of the engine
    attention: float | None = None  # FLOPs; None: as matrix products of the dtype
    attention_bandwidth: float | None = None  # bytes of keys and values; None: ``bandwidth``
    layer_overhead: float = 0.0
    step_overhead: float = 0.0
    memory: int | None = None  # bytes; None: not known
    is_measured: bool = False

    def rate(self, arithmetic: str) -> KernelRate:
        """Return the rate of this arithmetic, or of the nearest one that the machine has."""
        name: str | None = arithmetic
        while name is not None:
            if name in self.rates:
                return self.rates[name]
            name = FALLBACKS.get(name)
        return next(iter(self.rates.values()))


def parse_rate(text: str, option: str, unit: str) -> float:
    """Return a rate such as ``4.3TB/s`` or ``790T``.

    ``unit`` is "B/s", which must be written, or "FLOPS", which may be left out. Raises ``InvalidOption``.
    """
    example = "4.3TB/s" if unit == "B/s" else "790T"
    pattern = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*([kMGTP]?)" + (r"B/s" if unit == "B/s" else r"(?:FLOPS|FLOP/s)?")
    match = re.fullmatch(pattern, text.strip())
    rate = float(match[1]) * _PREFIXES[match[2]] if match else 0.0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidOption(
            f"{option} is not a rate",
            got=show(text),
            allowed=f"a number from 1M to 1,000,000T with k, M, G, T or P{' and B/s' if unit == 'B/s' else ''}, such as {example}",
        )
    return rate
